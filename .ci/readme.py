"Render nbs/index.ipynb to README.md with nbconvert; Quarto is not needed."
import nbformat
from execnb.nbio import nb2str, read_nb
from nbconvert import MarkdownExporter
from nbdev.config import get_config
from nbdev.processors import FilterDefaults


def main():
    cfg = get_config()
    nb = read_nb(cfg.nbs_path/cfg.readme_nb)
    FilterDefaults()(nb)
    nb.cells = [c for c in nb.cells if c.cell_type != 'raw']
    text, _ = MarkdownExporter().from_notebook_node(nbformat.reads(nb2str(nb), as_version=4))
    front = nb.frontmatter_
    (cfg.config_path/'README.md').write_text(f"# {front.get('title', cfg.title)}\n\n> {front.get('description', '')}\n\n{text.strip()}\n")


if __name__ == '__main__': main()
