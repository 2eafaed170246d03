"""Write the nodes' schemas, as ComfyUI tells them to its page, into a JSON file.

    python -m dev_parts.docs_site.schemas FILE      in the pack's folder, with the host's Python
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from pathlib import Path

from mmdiff_core.host.start import PACK, use_comfyui

PACK_MODULE = "mm_diff_pack"


def schemas() -> dict[str, dict]:
    """The answer of /object_info, by node id, in the order of the pack's list."""
    use_comfyui(cpu=True)
    spec = importlib.util.spec_from_file_location(
        PACK_MODULE, PACK / "__init__.py", submodule_search_locations=[str(PACK)]
    )
    sys.modules[PACK_MODULE] = pack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pack)

    async def told() -> dict[str, dict]:
        listed = await (await pack.comfy_entrypoint()).get_node_list()
        return {node.GET_SCHEMA().node_id: node.GET_NODE_INFO_V1() for node in listed}

    return asyncio.run(told())


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(schemas()), encoding="utf-8")
