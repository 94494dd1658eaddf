"""Answers of the engine against ``generate``, one prompt at a time, whatever else is being answered."""

from __future__ import annotations

import dataclasses
import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import tiny
import torch

from mogu.adapter.model import mogu_layers
from mogu.decode.inspect import prompt_logits
from mogu.errors import AdapterError, GenerationError, ModelError, QueueFullError
from mogu.serve.engine import LocalEngine
from mogu.serve.requests import Opening, Piece, Prompt, Routing, Sampling

NEW = 14
CALIBRATION = {
    "prompt": {"weight": [0.5, -0.4], "bias": 0.1},
    "answer": {"weight": [0.6, -0.7], "bias": -0.2},
}
UPPER = {"layers_to_transform": [1, 2]}
GREEDY = Sampling(NEW, temperature=0)


class Listener:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.over = threading.Event()

    def __call__(self, what: Any) -> None:
        self.told.append(what)
        if isinstance(what, Exception) or getattr(what, "finish", None):
            self.over.set()

    def wait(self) -> Listener:
        assert self.over.wait(60)
        if isinstance(self.told[-1], Exception):
            raise self.told[-1]
        return self

    @property
    def pieces(self) -> list[Piece]:
        return [one for one in self.told if isinstance(one, Piece)]

    @property
    def tokens(self) -> list[int]:
        return [piece.token for piece in self.pieces]


class Held:
    """A listener that keeps the engine's thread until it is let go: others can be queued meanwhile."""

    def __init__(self) -> None:
        self.reached, self.go = threading.Event(), threading.Event()

    def __call__(self, what: Any) -> None:
        self.reached.set()
        assert self.go.wait(60)


def hold(engine: LocalEngine) -> Held:
    held = Held()
    engine.submit(Prompt((5, 6), Sampling(1, temperature=0)), held)
    assert held.reached.wait(60)
    return held


def ask(engine: LocalEngine, ids: torch.Tensor, sampling: Sampling = GREEDY, **routing: Any) -> Listener:
    listener = Listener()
    engine.submit(Prompt(tuple(ids.flatten().tolist()), sampling, Routing(**routing)), listener)
    return listener


def generated(model: Any, ids: torch.Tensor, **options: Any) -> list[int]:
    options = {"max_new_tokens": NEW, "do_sample": False, **options}
    return model.generate(input_ids=ids, **options)[0, ids.shape[1] :].tolist()


PROMPTS = tiny.prompts(3, 7, 12, 20, 33, 9, 5, 2)
ROUTINGS: list[dict[str, Any]] = [
    {},
    {"routed_tokens": 0},
    {"dial": 1.5},
    {"handover": "all"},
    {"routed_tokens": 3},
    {"routed_tokens": 0},
    {"dial": -2.0, "routed_tokens": 2},
    {"routed_tokens": 1},
]


@pytest.fixture
def llama() -> Any:
    return tiny.adapted("llama", risk=CALIBRATION, **UPPER)


@pytest.fixture
def engine(llama: Any) -> Iterator[LocalEngine]:
    with LocalEngine(llama, tiny.tokenizer(), rows=5, kv_tokens=400, prefill_tokens=8, waiting=16) as engine:
        yield engine


@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        *((kind, UPPER) for kind in (*tiny.ARCHITECTURES, "mixtral", "opt", "gpt_oss")),
        *((kind, {}) for kind in ("llama", "falcon", "gemma2", "mistral", "gpt2")),
    ],
)
def test_mixed_rows_answer_as_generate_does(kind: str, layers: dict[str, Any]) -> None:
    model = tiny.adapted(kind, **layers)
    expected = [generated(model, ids, **routing) for ids, routing in zip(PROMPTS, ROUTINGS, strict=True)]
    with LocalEngine(model, tiny.tokenizer(), rows=5, kv_tokens=400, prefill_tokens=8) as engine:
        assert engine.reader.keeps_states == bool(layers)
        held = hold(engine)  # so that all of them wait
        asked = [ask(engine, ids, **routing) for ids, routing in zip(PROMPTS, ROUTINGS, strict=True)]
        held.go.set()
        assert [listener.wait().tokens for listener in asked] == expected
        assert engine.load().running == 0
    assert generated(model, PROMPTS[0]) == expected[0]  # the model is free again


def test_a_model_without_adapter_answers_plainly() -> None:
    model = tiny.base("llama")
    with LocalEngine(model, tiny.tokenizer(), rows=2, kv_tokens=200) as engine:
        listener = ask(engine, PROMPTS[2]).wait()
    assert listener.tokens == generated(model, PROMPTS[2])
    assert listener.told[0] == Opening(None, None, None)
    assert not any(piece.routed for piece in listener.pieces)


def test_no_place_is_no_trouble(llama: Any) -> None:
    """Rows are put back and read again where the cache cannot hold all that were begun."""
    prompts = tiny.prompts(30, 31, 32, 33, seed=8)
    expected = [generated(llama, ids, max_new_tokens=90) for ids in prompts]
    with LocalEngine(llama, tiny.tokenizer(), rows=4, kv_tokens=256, prefixes=0) as engine:
        held = hold(engine)
        asked = [ask(engine, ids, Sampling(90, temperature=0)) for ids in prompts]
        held.go.set()
        assert [listener.wait().tokens for listener in asked] == expected
        assert engine.load().kv_tokens == 0
        assert engine.load().prefilled > sum(2 * ids.shape[1] + 5 for ids in prompts)


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.8])
def test_each_row_hands_over_by_its_own_risk(llama: Any, threshold: float) -> None:
    llama.peft_config["default"].risk_threshold = threshold
    options = {"handover": "risk", "routed_tokens": 2, "return_dict_in_generate": True}
    whole = [llama.generate(input_ids=ids, max_new_tokens=NEW, do_sample=False, **options) for ids in PROMPTS]
    with LocalEngine(llama, tiny.tokenizer(), rows=8, kv_tokens=800) as engine:
        asked = [ask(engine, ids, handover="risk", routed_tokens=2) for ids in PROMPTS]
        for listener, ids, output in zip(asked, PROMPTS, whole, strict=True):
            assert listener.wait().tokens == output.sequences[0, ids.shape[1] :].tolist()
            assert sum(piece.routed for piece in listener.pieces) == int(output.routed_tokens)
            assert listener.told[0].risk == pytest.approx(float(output.risk), abs=1e-4)


def test_an_end_token_ends_a_row_in_head_and_tail(llama: Any) -> None:
    plain = [generated(llama, ids) for ids in PROMPTS[:4]]
    ends = [plain[0][1], plain[1][8]]
    llama.base_model.model.generation_config.eos_token_id = ends
    expected = [generated(llama, ids) for ids in PROMPTS[:4]]
    with LocalEngine(llama, tiny.tokenizer(), rows=4, kv_tokens=400) as engine:
        for ids, tokens in zip(PROMPTS, expected, strict=False):
            listener = ask(engine, ids).wait()
            assert listener.tokens == tokens
            last = listener.pieces[-1]
            assert last.finish == ("stop" if last.token in ends else "length")
            text = "".join(piece.text for piece in listener.pieces)
            said = tokens[:-1] if last.finish == "stop" else tokens
            assert text == tiny.tokenizer().decode(said, skip_special_tokens=True)
    assert len(expected[0]) == 2


def test_a_stop_string_ends_a_row(engine: LocalEngine) -> None:
    tokens = ask(engine, PROMPTS[2]).wait().tokens
    words = [tiny.tokenizer().decode([token]) for token in tokens]
    stop = f"{words[6]} {words[7]}"
    listener = ask(engine, PROMPTS[2], dataclasses.replace(GREEDY, stop=(stop, "never"))).wait()
    text = "".join(piece.text for piece in listener.pieces)
    assert text == " ".join(words).split(stop)[0]
    assert listener.pieces[-1].finish == "stop"


def test_the_opening_tells_what_the_routers_say(llama: Any, engine: LocalEngine) -> None:
    engine.close()
    logits = prompt_logits(llama, PROMPTS[4], dial=0.7)
    unwill, glad = torch.sigmoid(logits[0] + 0.7), torch.sigmoid(logits[1] - 0.7)
    with LocalEngine(llama, tiny.tokenizer(), prefill_tokens=8, kv_tokens=400) as other:
        ask(other, PROMPTS[4]).wait()
        listener = ask(other, PROMPTS[4], dial=0.7, trace=True).wait()
        listeners = [Listener(), Listener()]
        for one in listeners:
            other.read(tuple(PROMPTS[4][0].tolist()), one)
        ask(other, PROMPTS[0]).wait()
    opening = listener.told[0]
    assert [len(listener.told) for listener in listeners] == [1, 1]
    assert opening.unwill == pytest.approx(float(unwill[:, -1].mean()), abs=1e-5)
    assert opening.glad == pytest.approx(float(glad[:, -1].mean()), abs=1e-5)
    assert len(opening.trace) == 33
    torch.testing.assert_close(torch.tensor([w.unwill for w in opening.trace]).T, unwill, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(torch.tensor([w.glad for w in opening.trace]).T, glad, atol=1e-5, rtol=1e-4)
    assert [piece.weights is not None for piece in listener.pieces] == [True] * 5 + [False] * (NEW - 5)
    assert [piece.risk is not None for piece in listener.pieces] == [True] * 5 + [False] * (NEW - 5)
    plain = prompt_logits(llama, PROMPTS[4])[:, :, -1]
    margin = sum(w * (u - g) / 2 for w, u, g in zip(CALIBRATION["prompt"]["weight"], *plain.tolist(), strict=True))
    assert listeners[0].told[0].risk == pytest.approx(1 / (1 + 2.718281828 ** -(margin + 0.1)), abs=1e-5)


def test_what_prompts_begin_with_is_read_once(llama: Any) -> None:
    system = tiny.prompts(24, seed=9)[0]
    prompts = [torch.cat([system, ids], dim=1) for ids in PROMPTS]
    expected = [generated(llama, ids, **routing) for ids, routing in zip(prompts, ROUTINGS, strict=True)]
    with LocalEngine(llama, tiny.tokenizer(), kv_tokens=4000) as engine:
        for _ in range(2):
            for ids, routing, tokens in zip(prompts, ROUTINGS, expected, strict=True):
                assert ask(engine, ids, **routing).wait().tokens == tokens
            before, engine._prefilled = engine._prefilled, 0
        assert before < 0.5 * sum(2 * ids.shape[1] for ids in prompts)
        assert 0 < engine.load().kv_tokens <= 500


def test_cancelled_rows_are_told_nothing_more_and_free_their_place(llama: Any) -> None:
    expected = generated(llama, PROMPTS[3], max_new_tokens=60)
    with LocalEngine(llama, tiny.tokenizer(), rows=3, kv_tokens=400, prefixes=0) as engine:
        held = hold(engine)
        mine = ask(engine, PROMPTS[3], Sampling(60, temperature=0))
        told: list[Any] = []
        tickets: list[Any] = []

        def leave(what: Any) -> None:
            told.append(what)
            if len(told) == 8:
                tickets[0].cancel()
                tickets[0].cancel()

        ids = tuple(PROMPTS[4][0].tolist())
        tickets.append(engine.submit(Prompt(ids, Sampling(60, temperature=0)), leave))
        gone = Listener()
        engine.submit(Prompt(ids, GREEDY), gone).cancel()
        held.go.set()
        assert mine.wait().tokens == expected
        assert ask(engine, PROMPTS[5]).wait().tokens
        assert len(told) == 8
        assert gone.told == []
        load = engine.load()
        assert (load.running, load.waiting, load.kv_tokens) == (0, 0, 0)


def test_who_leaves_while_a_place_is_made_takes_nobody_along(llama: Any) -> None:
    expected = generated(llama, PROMPTS[5])
    with LocalEngine(llama, tiny.tokenizer(), rows=2, kv_tokens=400) as engine:
        held, places = hold(engine), engine._places
        leaving = engine.submit(Prompt((5, 6, 7), GREEDY), Listener())
        fit, listener = places.fit, Listener()

        def fit_slowly(row: Any) -> bool:
            places.fit = fit
            leaving.cancel()
            engine.submit(Prompt(tuple(PROMPTS[5][0].tolist()), GREEDY), listener)
            return fit(row)

        places.fit = fit_slowly
        held.go.set()
        assert listener.wait().tokens == expected


def test_a_failing_forward_costs_its_own_rows_only(llama: Any, engine: LocalEngine) -> None:
    expected = ask(engine, PROMPTS[3]).wait().tokens
    engine.prefixes.kept.clear()
    trouble = [MemoryError("no memory"), RuntimeError("broken")]

    def fail(module: Any, args: Any) -> None:
        if args[0].shape[1] == 7 and trouble:  # a prompt of seven tokens, read by itself
            raise trouble.pop()

    handle = mogu_layers(llama)[0][1].register_forward_pre_hook(fail)
    held = hold(engine)
    good, bad, worse = ask(engine, PROMPTS[3]), ask(engine, PROMPTS[1]), None
    held.go.set()
    with pytest.raises(GenerationError, match="RuntimeError: broken"):
        bad.wait()
    worse = ask(engine, PROMPTS[1])
    with pytest.raises(GenerationError, match="out of memory"):
        worse.wait()
    assert good.wait().tokens == expected
    assert ask(engine, PROMPTS[1]).wait().tokens
    handle.remove()


def test_a_listener_that_fails_ends_its_own_answer(engine: LocalEngine) -> None:
    def fail(what: Any) -> None:
        raise RuntimeError("a client's fault")

    expected = ask(engine, PROMPTS[3]).wait().tokens
    engine.submit(Prompt((5, 6, 7), GREEDY), fail)
    assert ask(engine, PROMPTS[3]).wait().tokens == expected
    assert engine.load().running == 0


def test_a_seed_draws_the_same_answer_whatever_else_runs(engine: LocalEngine) -> None:
    drawn = Sampling(NEW, temperature=1.0, top_p=0.9, seed=3, logprobs=1)
    alone = ask(engine, PROMPTS[2], drawn).wait()
    others = [ask(engine, ids, Sampling(NEW, seed=n)) for n, ids in enumerate(PROMPTS)]
    again = ask(engine, PROMPTS[2], drawn).wait()
    assert again.tokens == alone.tokens
    assert all(piece.logprob is not None and len(piece.top) == 1 for piece in again.pieces)
    for other in others:
        other.wait()


def test_a_full_queue_and_a_closed_engine_refuse(llama: Any) -> None:
    engine = LocalEngine(llama, tiny.tokenizer(), rows=1, kv_tokens=200, waiting=2)
    held = hold(engine)
    waiting = [ask(engine, PROMPTS[0]) for _ in range(2)]
    with pytest.raises(QueueFullError, match="2 answers wait already"):
        ask(engine, PROMPTS[0])
    held.go.set()
    engine.close()
    assert all(len(listener.wait().tokens) == NEW for listener in waiting)
    with pytest.raises(QueueFullError, match="closed"):
        ask(engine, PROMPTS[0])


def test_closing_at_once_tells_who_waits(llama: Any) -> None:
    engine = LocalEngine(llama, tiny.tokenizer(), rows=1, kv_tokens=200)
    held = hold(engine)
    listener = ask(engine, PROMPTS[0])
    threading.Timer(0.1, held.go.set).start()
    engine.close(drain=False)
    with pytest.raises(GenerationError, match="closed"):
        listener.wait()


@pytest.mark.parametrize(
    ("prompt", "fault"),
    [
        (Prompt((), GREEDY), "the prompt is empty"),
        (Prompt((1, 97), GREEDY), "not in the vocabulary of 97"),
        (Prompt((1,) * 120, GREEDY), "120 tokens of prompt and 14 of answer are more than the 128"),
        (Prompt((1,), Sampling(0)), "max_tokens must be at least 1, not 0"),
        (Prompt((1,), Sampling(1, temperature=-1)), "temperature must be at least 0"),
        (Prompt((1,), Sampling(1, top_p=0)), "top_p must be above 0"),
        (Prompt((1,), GREEDY, Routing(handover="late")), "handover must be one of fixed, risk, all, not 'late'"),
        (Prompt((1,), GREEDY, Routing(dial=float("nan"))), "the dial must be a finite number"),
    ],
)
def test_what_can_never_be_answered_is_refused(engine: LocalEngine, prompt: Prompt, fault: str) -> None:
    with pytest.raises(GenerationError, match=fault):
        engine.submit(prompt, print)


def test_what_cannot_be_served_is_said_at_the_start() -> None:
    with pytest.raises(ModelError, match="bloom cannot be served"):
        LocalEngine(tiny.base("bloom"), tiny.tokenizer())
    with pytest.raises(AdapterError, match="not in the routed stage"):
        LocalEngine(tiny.adapted("llama", stage="glad"), tiny.tokenizer())
    engine = LocalEngine(tiny.adapted("llama"), tiny.tokenizer(), kv_tokens=200)
    with engine, pytest.raises(GenerationError, match="no risk calibration"):
        ask(engine, PROMPTS[0], handover="risk")


def test_many_short_requests_leave_nothing_behind(llama: Any) -> None:
    chance = random.Random(0)
    kinds = [(ids, routing, chance.randint(1, NEW)) for ids, routing in zip(PROMPTS, ROUTINGS, strict=True)]
    expected = [generated(llama, ids, max_new_tokens=new, **routing) for ids, routing, new in kinds]
    with LocalEngine(llama, tiny.tokenizer(), rows=6, kv_tokens=256, prefill_tokens=16, waiting=200) as engine:
        asked = []
        for number in range(150):
            index = chance.randrange(len(kinds))
            ids, routing, new = kinds[index]
            listener = Listener()
            prompt = Prompt(tuple(ids[0].tolist()), Sampling(new, temperature=0), Routing(**routing))
            ticket = engine.submit(prompt, listener)
            if number % 10 == 3:
                ticket.cancel()
            else:
                asked.append((index, listener))
        for index, listener in asked:
            assert listener.wait().tokens == expected[index]
        assert engine.load().kv_tokens == engine.prefixes.tokens


@pytest.mark.parametrize(("kind", "layers"), [("llama", UPPER), ("gpt2", {"layers_to_transform": [0, 1]})])
def test_rows_stay_routed_through_their_thoughts(kind: str, layers: dict[str, Any]) -> None:
    routed = generated(tiny.adapted(kind, router="folded", **layers), PROMPTS[2], handover="all", max_new_tokens=20)
    begin = routed[0]  # tokens that stand in answers, so that thoughts begin and end
    end = next(token for token in routed[3:8] if token != begin)
    thought = {"think": "through", "think_tokens": [[begin], [end]], "think_limit": 11}
    model = tiny.adapted(kind, router="folded", risk=CALIBRATION, **layers, **thought)
    routings: list[dict[str, Any]] = [{}, {"routed_tokens": 0}, {}, {"handover": "all"}, {"routed_tokens": 3}]
    routings += [{"routed_tokens": 2}, {"routed_tokens": 2, "handover": "risk"}, {"dial": 1.5}]
    options = {"max_new_tokens": 20, "do_sample": False, "return_dict_in_generate": True}
    expected = [model.generate(input_ids=ids, **options, **how) for ids, how in zip(PROMPTS, routings, strict=True)]
    with LocalEngine(model, tiny.tokenizer(), rows=5, kv_tokens=400, prefill_tokens=8) as engine:
        asked = [
            ask(engine, ids, Sampling(20, temperature=0), **how) for ids, how in zip(PROMPTS, routings, strict=True)
        ]
        for listener, ids, output in zip(asked, PROMPTS, expected, strict=True):
            assert listener.wait().tokens == output.sequences[0, ids.shape[1] :].tolist()
        counts = [sum(piece.routed for piece in listener.pieces) for listener in asked]
        assert counts == [int(output.get("routed_tokens", 0)) for output in expected]
        head = Listener()
        engine.submit(Prompt(tuple(PROMPTS[2][0].tolist()), Sampling(20, temperature=0)), head, head_only=True)
        whole = ask(engine, PROMPTS[2], Sampling(20, temperature=0)).wait()
        assert head.tokens == [piece.token for piece in whole.pieces if piece.routed]
        assert head.pieces[-1].handed_over
    assert counts[2] > 5
