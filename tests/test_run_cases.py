"""The script that runs the cases of a folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "scripts" / "run_cases.py"
WRITES = '''"""Writes steps of two kinds.
usage: make.py FOLDER   (env T5)"""
import os, sys
import numpy as np
from safetensors.numpy import save_file
for kind in ("whole", "cut"):
    for step in (0, 100):
        out = f"{sys.argv[1]}/{kind}/step_{step}"
        os.makedirs(out)
        save_file({"w.weight": np.full((3, 4), step, np.float32)}, f"{out}/model.safetensors")
        if kind == "cut":
            os.truncate(f"{out}/model.safetensors", 80)
'''
THEN = '''"""Writes a table.
usage: make.py FOLDER   then: saturation fit --csv FOLDER/a.csv --x step --y norm"""
import os, sys
os.makedirs(sys.argv[1])
rows = "".join(f"{i},{i}\\n" for i in range(1, 9))
open(f"{sys.argv[1]}/a.csv", "w").write("step,norm\\n" + rows)
'''


def test_every_kind_of_case_has_its_rows(tmp_path):
    cases = tmp_path / "cases"
    cases.mkdir()
    (cases / "writes.py").write_text(WRITES)
    (cases / "prints.py").write_text("print('said by itself'); raise SystemExit(3)")
    (cases / "then.py").write_text(THEN)
    (cases / "hangs.py").write_text("import time; time.sleep(90)")
    (cases / "shell.sh").write_text('echo "got $(basename "$1")"')
    (cases / "common.py").write_text("raise AssertionError('no case')")
    command = [sys.executable, SCRIPT, cases, "--out", tmp_path / "out", "--seconds"]
    ended = subprocess.run([*command, "30"], capture_output=True, text=True)
    rows = {tuple(line.split()[:3]): line for line in ended.stdout.splitlines()}
    assert ("prints", "case", "3") in rows
    assert "said by itself" in rows["prints", "case", "3"]
    assert rows["shell", "case", "0"].endswith("got saturation")
    assert "parameters 12" in rows["writes/whole", "ls", "0"]
    assert "nothing found wrong" in rows["writes/whole", "audit", "0"]
    assert ("writes/whole", "measure", "0") in rows
    assert "truncated" in rows["writes/cut", "ls", "1"]
    assert ("writes/cut", "measure", "1") in rows
    assert "* linear" in rows["then", "fit", "0"]
    assert "ran past 30 seconds" in rows["hangs", "case", "124"]
    assert ended.returncode == 1
    assert "5 cases, 1 hung or not made" in ended.stdout
