"The notebooks are the source: what is generated from them must be what is committed."
import os, json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GENERATED = ('nbs', 'recx')


def texts(folder):
    "Path → content of everything that export and clean may touch."
    files = [p for top in GENERATED for p in (folder/top).rglob('*') if p.suffix in ('.py', '.ipynb') and '.ipynb_checkpoints' not in p.parts]
    return {str(p.relative_to(folder)): p.read_text(encoding='utf8') for p in [*files, folder/'README.md']}


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    target = tmp_path_factory.mktemp('checkout')
    for name in (*GENERATED, '.ci'): shutil.copytree(ROOT/name, target/name, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints'))
    for name in ('settings.ini', 'setup.py', 'README.md'): shutil.copyfile(ROOT/name, target/name)
    subprocess.run(['git', 'init', '-q'], cwd=target, check=True)
    return target


def run(copy, *words):
    done = subprocess.run([str(Path(sys.executable).parent/words[0]), *words[1:]], cwd=copy, capture_output=True, text=True, env={k: v for k, v in os.environ.items() if k != 'VIRTUAL_ENV'}) # IPython warns where another environment is active
    assert done.returncode == 0, done.stderr
    assert 'Warning' not in done.stderr + done.stdout, done.stderr + done.stdout


def test_export_clean_and_readme_leave_no_difference(copy):
    before = texts(copy)
    run(copy, 'nbdev_export')
    run(copy, 'nbdev_clean')
    run(copy, 'python', '.ci/readme.py')
    after = texts(copy)
    assert sorted(before) == sorted(after)
    assert [name for name in before if before[name] != after[name]] == []


RUNNABLE = [p for p in sorted((ROOT/'nbs').rglob('*.ipynb')) if p.name == '0_stage.ipynb' or p.parent.name == 'studies']


@pytest.mark.parametrize('path', RUNNABLE, ids=lambda p: str(p.relative_to(ROOT/'nbs')))
def test_exactly_one_cell_is_tagged_parameters(path):
    tags = [c['metadata'].get('tags', []) for c in json.loads(path.read_text())['cells']]
    assert sum('parameters' in t for t in tags) == 1


@pytest.mark.parametrize('path', sorted((ROOT/'nbs').rglob('*.ipynb')), ids=lambda p: str(p.relative_to(ROOT/'nbs')))
def test_imports_stand_alone_and_no_path_of_a_machine_shows(path):
    cells = json.loads(path.read_text())['cells']
    for cell in cells:
        source = [line for line in ''.join(cell['source']).splitlines() if line.strip() and not line.startswith('#')]
        if cell['cell_type'] == 'code' and any(line.startswith(('import ', 'from ')) for line in source) and 'parameters' not in cell['metadata'].get('tags', []):
            assert all(line.startswith(('import ', 'from ', ' ', ')')) for line in source), ''.join(cell['source'])
    text = json.dumps([c.get('outputs', []) for c in cells])
    for mark in (str(Path.home()), str(ROOT), '/tmp/', 'site-packages'): assert mark not in text, mark


def test_package_and_notebooks_mirror_each_other():
    modules = {str(p.relative_to(ROOT/'recx').with_suffix('')) for p in (ROOT/'recx').rglob('*.py') if p.name not in ('__init__.py', '_modidx.py')}
    exports = set()
    for path in (ROOT/'nbs').rglob('*.ipynb'):
        for cell in json.loads(path.read_text())['cells']:
            first = ''.join(cell['source']).split('\n')[0]
            if first.startswith('#| default_exp'): exports.add(first.split()[-1].replace('.', '/'))
    assert modules == exports
