"""Costs of steps: each second once, and of one stage's time nothing in another's."""

from lifecycle.core.step_costs import StepCosts, add_costs, add_input, spending, step_costs


def test_a_step_within_another_has_its_time_alone() -> None:
    now = iter([100.0, 103.0, 105.0, 106.0, 200.0, 203.0, 205.0, 206.0])

    def clock() -> float:
        return next(now)

    with step_costs() as costs:
        for _ in range(2):
            with spending("outer", clock), spending("inner", clock):
                pass
    assert costs.cpu_s == {"outer": 8, "inner": 4}


def test_what_is_counted_elsewhere_or_later_is_no_part_of_it() -> None:
    now = iter([10.0, 17.0])
    others = StepCosts(num_bytes=30)
    others.cpu_s["map"] = 2.0
    with step_costs() as costs:
        with spending("all", lambda: next(now)):  # of which others have worked for 2 s
            add_costs(others)
        add_input(12)
        with step_costs() as inner:
            add_input(1000)
    add_input(7)
    assert costs.cpu_s == {"map": 2, "all": 5} and costs.num_bytes == 42 and inner.num_bytes == 1000


def test_a_record_has_the_input_of_each_step() -> None:
    costs = StepCosts()
    costs.cpu_s |= {"read": 1.00004, "join": 2.0}
    assert costs.record(5, {"join": 9}) == {
        "steps": {"read": {"cpu_s": 1.0, "bytes": 5}, "join": {"cpu_s": 2.0, "bytes": 9}}
    }
