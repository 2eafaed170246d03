"""The pack's nodes: a schema and a sentence each."""

from comfy_api.latest import ComfyExtension, io

from ..mmdiff_core.host import files
from ..mmdiff_core.host.shown import serve_last_shown
from .aliases import SHOWS, sends_cached_results
from .apply import ApplyAttention
from .doctor import Doctor
from .keep import LoadSubject, MixSubjects, SaveSubject, SubjectWeights
from .likeness import Likeness, PickBest
from .load import ConvertCheckpoint, LoadFaceAnalysis, LoadMMDiff
from .load_all import LoadModels
from .prompt import TextEncode
from .regions import ConstraintMasks
from .small_world import SmallWorldLoader, SmallWorldSprite
from .subjects import FindFaces, SubjectEncoder
from .watch import FindSubjectRegions, ShowAttentionMaps, WatchAttention

NODES: list[type[io.ComfyNode]] = [
    LoadMMDiff,
    LoadFaceAnalysis,
    LoadModels,
    FindFaces,
    SubjectEncoder,
    ConstraintMasks,
    TextEncode,
    ApplyAttention,
    ConvertCheckpoint,
    SaveSubject,
    LoadSubject,
    MixSubjects,
    SubjectWeights,
    FindSubjectRegions,
    WatchAttention,
    ShowAttentionMaps,
    Likeness,
    PickBest,
    SmallWorldLoader,
    SmallWorldSprite,
    Doctor,
]


class MMDiffExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> MMDiffExtension:
    files.register_folders()
    if not sends_cached_results():
        serve_last_shown(SHOWS)
    return MMDiffExtension()
