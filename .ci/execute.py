"Execute notebooks in place, so that a reader on the web sees what their cells give: all of nbs/, or those named."
import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def execute(path):
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == 'code': cell.outputs = []
    NotebookClient(notebook, timeout=600, kernel_name='python3', resources={'metadata': {'path': str(path.parent)}}).execute()
    for cell in notebook.cells:   # progress bars are for the moment
        if cell.cell_type == 'code': cell.outputs = [o for o in cell.outputs if o.get('name') != 'stderr']
    nbformat.write(notebook, path)


def main():
    os.environ['IN_TEST'] = '1'
    paths = [Path(p) for p in sys.argv[1:]] or sorted(p for p in Path('nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
    for path in paths:
        print(path, flush=True)
        execute(path)


if __name__ == '__main__': main()
