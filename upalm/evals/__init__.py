"""Evaluations."""

from etils import epy as _epy

with _epy.lazy_api_imports(globals()):
    from upalm.evals.runner import evaluate
    from upalm.evals.scorer import PromptFormat, Scorer
    from upalm.evals.suites import SUITES, Suite, run_suite
    from upalm.evals.task import Generated, Question, Ranked, Source
