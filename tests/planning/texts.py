"""Modules written by hand in the compiler's form: what the golden text does not hold."""

HEAD = "HloModule made_by_hand, is_scheduled=true\n\n"
CYCLES = 'backend_config={{"window_config":{{"estimated_cycles":"{}"}}}}'


def cycles(number: int) -> str:
    return CYCLES.format(number)


def entry(*lines: str) -> str:
    """An entry computation of these instructions, the last one its root."""
    body = "".join(f"  {line}\n" for line in lines[:-1]) + f"  ROOT {lines[-1]}\n"
    return f"ENTRY %main (x: f32[8,128]) -> f32[8,128] {{\n{body}}}\n"


X = "%x = f32[8,128]{1,0:T(8,128)} parameter(0)"

# A start, 700 cycles of work, a done, then 100 cycles.
STARTED = HEAD + entry(
    X,
    "%g-start = (f32[8,128]{1,0}, f32[32,128]{1,0}) all-gather-start(%x), "
    "replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}",
    f"%work = f32[8,128]{{1,0}} negate(%x), {cycles(700)}",
    "%g-done = f32[32,128]{1,0} all-gather-done(%g-start)",
    f"%end = f32[8,128]{{1,0}} slice(%g-done), slice={{[0:8], [0:128]}}, {cycles(100)}",
)

# The same handed to another core, whose own cycles are not the main core's.
HANDED_OVER = (
    HEAD
    + """%called (p: f32[8,128]) -> f32[32,128] {
  %p = f32[8,128]{1,0} parameter(0)
  ROOT %all-gather.1 = f32[32,128]{1,0} all-gather(%p), replica_groups={{0,2,4,6},{1,3,5,7}}, dimensions={0}, """
    + cycles(9000)
    + """
}, execution_thread="sparsecore"

"""
    + entry(
        X,
        '%c-start = ((), (), (s32[1]{0})) call-start(), async_execution_thread="sparsecore", to_apply=%called',
        f"%before = f32[8,128]{{1,0}} negate(%x), {cycles(300)}",
        "%c-update = ((f32[8,128]{1,0}), f32[32,128]{1,0}) call-update(%c-start, %before)",
        f"%work = f32[8,128]{{1,0}} negate(%before), {cycles(700)}",
        "%c-done = f32[32,128]{1,0} call-done(%c-update)",
        f"%end = f32[8,128]{{1,0}} slice(%c-done), slice={{[0:8], [0:128]}}, {cycles(100)}",
    )
)

# A chain of fusions that all hold the same collective: one starts it, one moves it on beside a product, one ends it.
_GATHER = 'all-gather(%p), replica_groups={{0,2,4,6},{1,3,5,7}}, dimensions={0}, frontend_attributes={chain_id="3"}'
CHAIN = (
    HEAD
    + f"""%starts (p: f32[8,128]) -> (f32[8,128], u32[]) {{
  %p = f32[8,128]{{1,0}} parameter(0)
  %all-gather.1 = f32[32,128]{{1,0}} {_GATHER}
  ROOT %s = (f32[8,128]{{1,0}}, u32[]) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}}

%moves (p: f32[8,128]) -> (f32[8,128], f32[32,128]) {{
  %p = f32[8,128]{{1,0}} parameter(0)
  %all-gather.2 = f32[32,128]{{1,0}} {_GATHER}
  ROOT %t = (f32[8,128]{{1,0}}, f32[32,128]{{1,0}}) tuple(%p, %all-gather.2)
}}

%ends (p: f32[8,128]) -> f32[32,128] {{
  %p = f32[8,128]{{1,0}} parameter(0)
  %all-gather.3 = f32[32,128]{{1,0}} {_GATHER}
  ROOT %d = f32[32,128]{{1,0}} custom-call(%p, %all-gather.3), custom_call_target="AsyncCollectiveDone"
}}

"""
    + entry(
        X,
        "%f1 = (f32[8,128]{1,0}, u32[]) fusion(%x), kind=kCustom, calls=%starts",
        f"%f2 = (f32[8,128]{{1,0}}, f32[32,128]{{1,0}}) fusion(%x), kind=kOutput, calls=%moves, {cycles(700)}",
        "%f3 = f32[32,128]{1,0} fusion(%x), kind=kCustom, calls=%ends",
        f"%end = f32[8,128]{{1,0}} slice(%f3), slice={{[0:8], [0:128]}}, {cycles(100)}",
    )
)

# A kernel fused with the slice that it reads of a stack.
READS_A_SLICE = (
    HEAD
    + """%part (p: f32[4,8,128], i: s32[]) -> f32[8,128] {
  %p = f32[4,8,128]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = f32[1,8,128]{2,1,0} dynamic-slice(%p, %i, %zero, %zero), dynamic_slice_sizes={1,8,128}
  ROOT %b = f32[8,128]{1,0} bitcast(%slice)
}

%called (p: f32[4,8,128], i: s32[]) -> f32[8,128] {
  %p = f32[4,8,128]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %f = f32[8,128]{1,0} fusion(%p, %i), kind=kLoop, calls=%part
  ROOT %rotate.5 = f32[8,128]{1,0} custom-call(%f), custom_call_target="tpu_custom_call"
}

"""
    + entry(
        X,
        "%i = s32[] constant(2)",
        '%stack = f32[4,8,128]{2,1,0} custom-call(), custom_call_target="AllocateBuffer"',
        "%rotate.6 = f32[8,128]{1,0} fusion(%stack, %i), kind=kCustom, calls=%called",
        f"%end = f32[8,128]{{1,0}} negate(%rotate.6), {cycles(10)}",
    )
)


def loop(start: str, step: str, bound: str, direction: str = "LT", inside: str = "") -> str:
    """A loop whose counter is the state's first element; `bound` is carried along as its last and never changed."""
    state = "(s32[], f32[8,128], s32[])"
    return f"""{HEAD}{inside}%cond (s: {state}) -> pred[] {{
  %s = {state} parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %n = s32[] get-tuple-element(%s), index=2
  ROOT %lt = pred[] compare(%i, %n), direction={direction}
}}

%body (s: {state}) -> {state} {{
  %s = {state} parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %y = f32[8,128] get-tuple-element(%s), index=1
  %n = s32[] get-tuple-element(%s), index=2
  %one = s32[] constant({step})
  %next = s32[] add(%i, %one)
  %z = f32[8,128] negate(%y), {cycles(50)}
  ROOT %t = {state} tuple(%next, %z, %n)
}}

""" + entry(
        X,
        f"%start = s32[] {start}",
        f"%bound = s32[] {bound}",
        "%bound_copy = s32[] copy(%bound)",
        f"%state = {state} tuple(%start, %x, %bound_copy)",
        f"%w = {state} while(%state), condition=%cond, body=%body",
        "%out = f32[8,128] get-tuple-element(%w), index=1",
    )
