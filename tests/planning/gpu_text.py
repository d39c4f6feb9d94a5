"""A module written by hand in the GPU compiler's form: a gather beside two products, attention, and a copy beside them.

A device has 256 rows of width 512; weights are gathered over two devices, `[512, 1024]`; a row of 128 positions has 4
query heads, and 2 key heads, of 64.
"""

ROWS, WIDTH, HIDDEN, BATCH, POSITIONS, HEADS, KEY_HEADS, HEAD_DIM = 256, 512, 1024, 2, 128, 4, 2, 64

_Q, _K = (f"bf16[{BATCH},{POSITIONS},{heads},{HEAD_DIM}]{{3,2,1,0}}" for heads in (HEADS, KEY_HEADS))
_LSE = f"f32[{BATCH},{HEADS},{POSITIONS}]{{2,1,0}}"
_FMHA = '"cudnn_fmha_backend_config": {"is_flash_attention": true, "mask_type": "MASK"}'
_CUBLAS = (
    '"gemm_backend_config":{"beta":0,"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],'
    '"rhs_contracting_dimensions":["0"],"lhs_batch_dimensions":[],"rhs_batch_dimensions":[]}}'
)
TEXT = f"""HloModule made_by_hand, is_scheduled=true

%triton (p0: f8e4m3fn[256,512], p1: f8e4m3fn[512,1024]) -> f32[256,1024] {{
  %p0 = f8e4m3fn[256,512]{{1,0}} parameter(0)
  %p1 = f8e4m3fn[512,1024]{{1,0}} parameter(1)
  ROOT %dot.1 = f32[256,1024]{{1,0}} dot(%p0, %p1), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
}}

%kept (p0: bf16[4,256,1024], p1: bf16[256,1024], p2: s32[]) -> bf16[4,256,1024] {{
  %p0.1 = bf16[4,256,1024]{{2,1,0}} parameter(0)
  %p1.1 = bf16[256,1024]{{1,0}} parameter(1)
  %p2.1 = s32[] parameter(2)
  %row = bf16[1,256,1024]{{2,1,0}} bitcast(%p1.1)
  %zero = s32[] constant(0)
  ROOT %put = bf16[4,256,1024]{{2,1,0}} dynamic-update-slice(%p0.1, %row, %p2.1, %zero, %zero)
}}

ENTRY %main (x: bf16[256,512], w: bf16[256,1024], y: f8e4m3fn[256,512], v: f8e4m3fn[512,1024]) -> f32[256,1024] {{
  %x = bf16[256,512]{{1,0}} parameter(0)
  %w = bf16[256,1024]{{1,0}} parameter(1)
  %y = f8e4m3fn[256,512]{{1,0}} parameter(2)
  %v = f8e4m3fn[512,1024]{{1,0}} parameter(3)
  %q = {_Q} parameter(4)
  %k = {_K} parameter(5)
  %stack = bf16[4,256,1024]{{2,1,0}} parameter(6)
  %i = s32[] parameter(7)
  %gather-start = ((bf16[256,1024]{{1,0}}), bf16[512,1024]{{1,0}}) all-gather-start(%w), \
replica_groups=mesh['replica'=1,'stage'=1,'fsdp'=2,'expert'=1,'context'=1,'tensor'=2] {{'fsdp'}}, dimensions={{0}}
  %narrow = f32[256,1024]{{1,0}} fusion(%y, %v), kind=kCustom, calls=%triton, \
metadata={{op_name="jit(step)/dot_general"}}, backend_config={{"fusion_backend_config":{{"kind":"__triton_gemm"}}}}
  %gather-done = bf16[512,1024]{{1,0}} all-gather-done(%gather-start)
  %wide = (bf16[256,1024]{{1,0}}, s8[4194304]{{0}}) custom-call(%x, %gather-done), \
custom_call_target="__cublas$lt$matmul", metadata={{op_name="jit(step)/dot_general"}}, backend_config={{{_CUBLAS}}}
  %out = bf16[256,1024]{{1,0}} get-tuple-element(%wide), index=0
  %kept-start = ((bf16[4,256,1024]{{2,1,0}}, bf16[256,1024]{{1,0}}, s32[]), bf16[4,256,1024]{{2,1,0}}, u32[]) \
fusion-start(%stack, %out, %i), kind=kLoop, calls=%kept
  %fwd = ({_Q}, {_LSE}, u8[0]{{0}}) custom-call(%q, %k, %k), custom_call_target="__cudnn$fmhaSoftmax", \
backend_config={{{_FMHA.replace("MASK", "CAUSAL")}}}
  %bwd = ({_Q}, {_K}, {_K}, u8[0]{{0}}) custom-call(%q, %k, %k, %q), \
custom_call_target="__cudnn$fmhaSoftmaxBackward", backend_config={{{_FMHA.replace("MASK", "NO_MASK")}}}
  %kept-done = bf16[4,256,1024]{{2,1,0}} fusion-done(%kept-start)
  ROOT %end = f32[256,1024]{{1,0}} copy(%narrow)
}}
"""
