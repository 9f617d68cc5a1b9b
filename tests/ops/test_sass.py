"""csrc/sass.py and csrc/compile_check.py: accesses that came out narrow, and instructions counted by hand."""

import subprocess
import sys
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
sys.path.insert(0, str(CSRC))  # its scripts import one another by name

import compile_check  # noqa: E402
import sass  # noqa: E402

# One tile: a load, a slow path past a call, a store; then back to the start, or out.
DISASSEMBLY = """
	.section	.text._Z5quadsPf,"ax",@progbits
_Z5quadsPf:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_3:
        /*0010*/                   LDG.E R9, desc[UR4][R6.64] ;
        /*0020*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0030*/                   ISETP.GT.U32.AND P1, PT, R5, 0x727fffff, PT ;
        /*0040*/              @!P1 BRA `(.L_x_1) ;
        /*0050*/                   MOV R34, 0x20f0 ;
        /*0060*/                   CALL.REL.NOINC `($__internal_27_$__cuda_sm20_sqrt_rn_f32_slowpath) ;
        /*0070*/                   BRA `(.L_x_2) ;
.L_x_1:
        /*0080*/                   FMUL.FTZ R5, R0, R35 ;
.L_x_2:
        /*0090*/              @!P0 STG.E.128 desc[UR4][R2.64], R4 ;
        /*00a0*/               @P2 BRA `(.L_x_3) ;
        /*00b0*/                   EXIT ;
.L_x_4:
        /*00c0*/                   BRA `(.L_x_4) ;
"""


def kernel_of(disassembly: str) -> sass.Kernel:
    (kernel,) = sass.kernels(disassembly)
    return kernel


def test_widths_of_accesses():
    kernel = kernel_of(DISASSEMBLY)
    assert kernel.name == "_Z5quadsPf"
    assert sass.global_accesses(kernel, "LD") == [4, 16]
    assert sass.global_accesses(kernel, "ST") == [16]
    many = ["G.E.U16", "G.E.64", "G.E.S8.CONSTANT", ".E", "G.E.128.CONSTANT", "G.E.ENL2.256", "S.128", "C.64"]
    lines = "".join(f"        /*0000*/                   LD{kind} R4, R2 ;\n" for kind in many)
    text = f'\t.section\t.text.f,"ax"\n{lines}'
    assert sass.global_accesses(kernel_of(text), "LD") == [2, 8, 1, 4, 16, 32]


def test_the_shortest_way_through_a_tile_is_counted():
    # LDG, LDG, ISETP, BRA over the slow path, FMUL, STG, BRA: the call and its neighbours stay out.
    assert sass.issued_per_tile(kernel_of(DISASSEMBLY)) == 7
    assert compile_check.issued_per_element(kernel_of(DISASSEMBLY), "float") == 7 / 4
    assert compile_check.issued_per_element(kernel_of(DISASSEMBLY), "bf16") == 7 / 8


def test_a_kernel_without_a_loop_has_no_tile():
    with pytest.raises(ValueError, match="no loop"):
        sass.issued_per_tile(kernel_of(DISASSEMBLY.replace("@P2 BRA `(.L_x_3)", "@P2 BRA `(.L_x_4)")))


def test_narrow_accesses_are_faults_unless_allowed():
    kernel = kernel_of(DISASSEMBLY)
    assert compile_check.narrow_accesses("noise_kernel", kernel) == []
    assert compile_check.narrow_accesses("other_kernel", kernel) == [
        "1 of 2 loads are narrower than 16 bytes"
    ]
    split = kernel_of(DISASSEMBLY.replace("STG.E.128", "STG.E"))
    assert compile_check.narrow_accesses("noise_kernel", split) == [
        "1 of 1 stores are narrower than 16 bytes"
    ]
    scalar = kernel_of(DISASSEMBLY.replace("LDG.E.128", "LDG.E"))
    assert compile_check.narrow_accesses("noise_kernel", scalar) == ["no load of 16 bytes"]


def test_every_kernel_for_aligned_tensors_is_found_in_the_sources():
    places = {}
    for source in CSRC.glob("*.cu"):
        places |= compile_check.place_of_aligned(source.read_text())
    assert places.items() >= {"noise_kernel": 2, "loss_kernel": 3, "moments_kernel": 2}.items()


PLANTED = """
#include "grid.cuh"
namespace refimpl::cuda {
template <class X, bool ALIGNED>
__global__ void planted_kernel(X* to, const X* from, int64_t n) {
  for (int64_t i = 4 * threadIdx.x; i < n; i += 4 * THREADS) {
    X values[4];
    load<ALIGNED>(values, from, i, n);
    STORE;
  }
}
template __global__ void planted_kernel<float, true>(float*, const float*, int64_t);
}  // namespace refimpl::cuda
"""


@pytest.mark.parametrize(
    ("store", "fault"),
    [
        ("store<ALIGNED>(to, i, n, values)", None),
        ("for (int l = 0; l < 4; ++l) to[i + l] = values[l]", "stores are narrower than 16 bytes"),
    ],
    ids=["wide", "planted"],
)
def test_a_planted_scalar_store_fails_the_check(tmp_path, store, fault):
    for tool in ("nvcc", "nvdisasm"):
        try:
            compile_check.find_tool(tool)
        except SystemExit:
            pytest.skip(f"no {tool}")
    file = tmp_path / "planted.cu"
    file.write_text(PLANTED.replace("STORE", store))
    command = [sys.executable, str(CSRC / "compile_check.py"), "--arch", "90", str(file)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stderr == ""
    assert result.returncode == (fault is not None)
    assert ("planted_kernel<float, true>: " in result.stdout) == (fault is not None)
    assert fault is None or fault in result.stdout
