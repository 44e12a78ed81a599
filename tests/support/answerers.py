"""Stand-ins for a model in evaluations: an oracle, and a guesser."""

import numpy as np

from upalm.evals.scorer import Prompt, Scorer
from upalm.evals.task import LoadedTask
from upalm.inference.scoring import Likelihood


class StandIn(Scorer):
    """Answers by a rule; its prompts are indices of texts."""

    fingerprint = {"stand-in": True}

    def __init__(self, loaded: LoadedTask):
        self.texts, self.right, self.solutions = [], set(), {}
        for q in loaded.questions:
            self.right |= {(q.contexts[g] if q.contexts else q.prompt, q.choices[g]) for g in q.gold}
            self.solutions[q.prompt] = q.as_exemplar()[len(q.prompt) :] if not q.contexts else ""

    def build_prompt(self, preamble, shots, question, n_new):
        self.texts.append(question)
        return Prompt((len(self.texts) - 1,))

    def count_new(self, answer):
        return 1 if answer else 0

    def rank(self, prompts, choices):
        for i in reversed(range(len(prompts))):
            text = self.texts[prompts[i].ids[0]]
            yield i, [Likelihood(self.score(text, c), 1, False) for c in choices[i]]

    def generate(self, prompts, max_new_tokens, stop):
        for i, prompt in enumerate(prompts):
            yield i, self.answer(self.texts[prompt.ids[0]])


class Oracle(StandIn):
    def score(self, text, choice):
        return 0.0 if (text, choice) in self.right else -9.0

    def answer(self, text):
        return self.solutions[text]


class Guess(StandIn):
    def __init__(self, loaded):
        super().__init__(loaded)
        self.rng = np.random.default_rng(0)

    def score(self, text, choice):
        return self.rng.random()

    def answer(self, text):
        return ""
