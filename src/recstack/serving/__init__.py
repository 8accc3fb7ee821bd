"""A saved cascade as an HTTP service, with a page for people; needs the extra ``recstack[serve]``.

Imports no training code: what a bundle needs to answer is loaded, and nothing else.
"""

from recstack.errors import ConfigError

try:
    from recstack.serving.http import app, serve
except ModuleNotFoundError as e:
    if e.name is None or e.name.split(".")[0] != "starlette":
        raise
    raise ConfigError('Serving needs Starlette and uvicorn: pip install "recstack[serve]".') from e

__all__ = ["app", "serve"]
