"""benchmarks/kernel_cost.py on code written by hand."""

import pytest
from kernel_cost import A100, CASES, H100, Case, Loop, count, functions, ratio

SASS = """
.section .text._Z3onefv
.text._Z3onefv:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   MOV R2, RZ ;
.L_x_1:
        /*0020*/                   LDG.E R3, [R4.64] ;
.L_x_2:
        /*0030*/                   FFMA R5, R3, R3, R5 ;
        /*0040*/              @P0 BRA `(.L_x_2) ;
        /*0050*/                   IADD3 R2, R2, 0x1, RZ ;
        /*0060*/              @!P1 BRA `(.L_x_1) ;
        /*0070*/                   EXIT ;
.L_x_3:
        /*0080*/                   BRA `(.L_x_3);
        /*0090*/                   NOP;
.text._Z3twofv:
        /*0000*/                   EXIT ;
"""


def test_instructions_are_counted_as_often_as_their_loops_run():
    code = functions(SASS)
    assert list(code) == ["_Z3onefv", "_Z3twofv"]
    assert count(code["_Z3twofv"], ()) == 1
    # three outside, three in the outer loop and two in the inner one
    assert count(code["_Z3onefv"], (5, 4)) == 3 + 5 * (3 + 4 * 2)
    with pytest.raises(ValueError, match="2 loops, where 1 are expected"):
        count(code["_Z3onefv"], (5,))


def test_the_ratio_is_1_where_instructions_and_bytes_take_as_long():
    """Two float32 values are 8 bytes, for which an H100's memory takes as long as its SMs for 71 instructions."""
    assert ratio(H100.issue * 8 / H100.bandwidth, 2, 4, H100) == pytest.approx(1)
    assert H100.issue * 8 / H100.bandwidth == pytest.approx(70.8, abs=0.1)
    assert ratio(50, 2, 2, A100) == pytest.approx(2 * ratio(50, 2, 4, A100))


def test_of_the_copies_of_a_loop_one_is_run():
    case = Case("a kernel", "", (Loop("for (int i = 0; i < n; i++)", 3, copies=2), Loop("while (more)", 5)), 1, 2)
    assert case.trips == (3, 0, 5)
    assert len({case.what for case in CASES}) == len(CASES)
