"""Cost of a step on chips that need not be at hand."""

from etils import epy as _epy

with _epy.lazy_api_imports(globals()):
    from upalm.planning.planner import Plan, plan
    from upalm.planning.topology import TOPOLOGIES, target_of
