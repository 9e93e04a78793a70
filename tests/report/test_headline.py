import math
from dataclasses import replace

from ppf.evaluation.results import Evaluation, ModelResult, Speed
from ppf.report.headline import curve_headline, evaluation_headline, search_headline
from ppf.report.scores import Entry, LogPerplexity


def entry(policy: str, perplexity: float, parameters: int = 80, ratio: float = 0.3) -> Entry:
    return Entry(policy, ratio, LogPerplexity(math.log(perplexity)), parameters=parameters)


def test_a_search_is_told_against_uniform_rules_and_dense() -> None:
    rows = [
        entry("dense", 20, parameters=100, ratio=0),
        entry("uniform", 50),
        entry("flap", 45),
        entry("owl", math.inf),
        entry("PPF", 40),
    ]
    assert search_headline(rows) == [
        "Perplexity 40.00 instead of 50.00 for uniform pruning (−20.0 %), at a pruning ratio of"
        " 30.0 %.",
        "The best allocation rule, flap, reaches 45.00.",
        "The dense model has 20.00.",
        "The pruned model is 20.0 % smaller: 80 instead of 100 parameters.",
    ]


def test_rules_that_propose_one_policy_are_told_together() -> None:
    uniform = replace(entry("uniform", 50), also=["owl", "obs_global"])
    said = search_headline([uniform, entry("flap", 55), entry("PPF", 40)])
    assert said[1] == "The best allocation rule, owl = obs_global, reaches 50.00."


def test_the_selection_part_is_told_with_its_error() -> None:
    best = replace(
        entry("PPF", 40),
        selection=LogPerplexity(math.log(44), std_error=0.05),
        difference=LogPerplexity(math.log(0.8), std_error=0.01),
    )
    assert search_headline([entry("uniform", 50), entry("flap", 45), best]) == [
        "Perplexity 44.00 ± 2.20 on the selection part, whose windows the search did not use:"
        " −20.0 ± 0.8 % against uniform pruning, at a pruning ratio of 30.0 %.",
        "On the labelling part, which the search optimised: 40.00 instead of 50.00 (−20.0 %).",
        "The best allocation rule, flap, reaches 45.00 on the labelling part.",
    ]


def test_a_budget_of_bytes_is_told_in_bytes() -> None:
    rows = [entry("dense", 20, ratio=0), entry("uniform", 50), entry("PPF", 40)]
    sizes = (100, 70, 70)
    rows = [replace(row, bytes=size * 2**20) for row, size in zip(rows, sizes, strict=True)]
    assert search_headline(rows) == [
        "Perplexity 40.00 instead of 50.00 for an equal share of bytes at every site (−20.0 %),"
        " with 30.0 % fewer bytes.",
        "The dense model has 20.00.",
        "The prunable matrices have 70.0 MiB instead of 100.0 MiB in 16 bits.",
    ]


def test_no_success_is_told_too() -> None:
    said = search_headline([entry("uniform", 50), entry("PPF", 50)])
    assert said == [
        "The policy found is that of uniform pruning: no other measured policy is better."
        " Perplexity 50.00 on the labelling part, at a pruning ratio of 30.0 %."
    ]
    chosen = replace(entry("PPF", 50), selection=LogPerplexity(math.log(44)))
    (said, *_) = search_headline([entry("uniform", 50), entry("owl", 49), chosen])
    assert said == (
        "The policy found is that of uniform pruning: no other finalist has a lower loss over the"
        " labelling and selection parts together. Perplexity 44.00 on the selection part,"
        " at a pruning ratio of 30.0 %."
    )
    said = search_headline([entry("uniform", 50), entry("flap", 40), entry("PPF", 40)])
    assert "It is the policy of the allocation rule flap." in said


def test_a_curve_is_told_by_its_mean_and_its_largest_difference() -> None:
    rows = [entry("uniform", 40, ratio=0.2), entry("PPF", 40, ratio=0.2)]
    rows += [entry("uniform", 100, ratio=0.5), entry("PPF", 64, ratio=0.5)]
    first, second = curve_headline(rows)
    assert "from 20.0 % to 50.0 %: perplexity −20.0 % against uniform pruning" in first
    assert "better at 1 of 2 ratios" in second
    assert "at 50.0 %: 64.00 instead of 100.0 (−36.0 %)" in second
    worse = [entry("uniform", 100, ratio=0.6), entry("PPF", 150, ratio=0.6)]
    assert "at 60.0 %: 150.0 instead of 100.0 (+50.0 %)" in curve_headline(rows + worse)[1]


def model(name: str, perplexity: float, size: int, rate: float = 0) -> ModelResult:
    speed = [Speed(1, 64, rate, rate, None)] if rate else []
    nll = math.log(perplexity)
    return ModelResult(name, None, nll, perplexity, size, size, speed)


def test_an_evaluation_is_told_with_size_and_speed() -> None:
    results = [model("dense", 20, 100, 10), model("uniform", 50, 75), model("PPF", 40, 75, 15)]
    first, second, third = evaluation_headline(Evaluation("a text", 4, 128, 128, results))
    assert first == (
        "Perplexity 40.00 on the test part instead of 50.00 for uniform pruning (−20.0 %)."
    )
    assert second == "The dense model has 20.00."
    assert third == (
        "Against the dense model: 25.0 % smaller; prefill 1.50 × and decode 1.50 × as fast with a"
        " batch of 1."
    )


def test_an_evaluation_tells_its_ratio_as_a_share_of_parameters() -> None:
    pruned = replace(model("PPF", 40, 75), ratio=0.2)
    found = Evaluation("a text", 4, 128, 128, [pruned])
    assert evaluation_headline(found) == [
        "PPF has a perplexity of 40.00 on the test part with 20.0 % of the prunable parameters"
        " removed."
    ]
    assert evaluation_headline(replace(found, rounded=True)) == [
        "PPF has a perplexity of 40.00 on the test part with 20.0 % fewer bytes."
    ]


def test_folders_are_compared_with_the_first() -> None:
    results = [model("big", 20, 100), model("small", 25, 80)]
    first, second = evaluation_headline(Evaluation("a text", 4, 128, 128, results))
    assert "25.00 on the test part instead of 20.00 for big (+25.0 %)" in first
    assert second == "Against big: 20.0 % smaller."
    _, grown = evaluation_headline(Evaluation("a text", 4, 128, 128, results[::-1]))
    assert grown == "Against small: 25.0 % larger."
    alone = evaluation_headline(Evaluation("a text", 4, 128, 128, results[:1]))
    assert alone == ["big has a perplexity of 20.00 on the test part."]
