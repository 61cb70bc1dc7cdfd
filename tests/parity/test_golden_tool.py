"""The command that tries golden cases, `tools/golden.py`."""

import runpy
from pathlib import Path

TOOL = Path(__file__).resolve().parents[2] / "tools" / "golden.py"


def test_its_usage_is_shown(capsys):
    main = runpy.run_path(str(TOOL))["main"]
    for asked in (["--help"], ["-h", "case.safetensors"]):
        assert main(asked) == 0
        assert "python tools/golden.py FILE" in capsys.readouterr().out
    assert main([]) == 2
    assert "python tools/golden.py FILE" in capsys.readouterr().err
    assert main(["gone.safetensors"]) == 2
