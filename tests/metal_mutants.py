"""Bugs to inject into the Metal kernels, each of which the emulator has to find.

(kernel, bug) -> text of the source, what it is replaced by, which occurrence of it, and how it may be found: `compile`, `rule`
(barriers, lanes, memory), `wrong` (against float64), `schedule` (results differ between orders), `crash` (at a guard page).
"""

from __future__ import annotations

from edgeformer.backends.mlx import metal

BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);\n"
MUTANTS = {  # (kernel, bug) -> (text, replacement, which occurrence; how it is found)
    ("add_rms_norm", "first barrier missing"): (BARRIER, "", 0, "schedule wrong"),
    ("add_rms_norm", "second barrier missing"): (BARRIER, "", 1, "schedule wrong"),
    ("add_rms_norm", "no zero-init"): ("sums[lane] = 0.0f;", "", 0, "wrong"),
    ("add_rms_norm", "off by one"): ("i < WIDTH", "i <= WIDTH", 0, "crash wrong"),
    ("add_rms_norm", "last element left out"): ("i < WIDTH", "i + 1 < WIDTH", 1, "wrong"),
    ("add_rms_norm", "one lane's sum"): ("squares = simd_sum(squares);", "simd_broadcast(squares, 0);", 0, "wrong"),
    ("add_rms_norm", "written to the next slot"): ("sums[group] = squares", "sums[group + 1] = squares", 0, "rule wrong"),
    ("add_rms_norm", "barrier in a branch"): ("  sums[lane] = 0.0f;", "  " + BARRIER + "  sums[lane] = 0.0f;", 0, "rule"),
    ("add_rms_norm", "return before a barrier"): ("squares = simd_sum", "if (me == 7) return;\nsquares = simd_sum", 0, "rule"),
    ("add_rms_norm", "too much threadgroup memory"): ("sums[32]", "sums[9000]", 0, "rule"),
    ("add_rms_norm", "a function Metal lacks"): ("metal::precise::rsqrt", "metal::erf", 0, "compile"),
    ("add_rms_norm", "implicit bfloat"): ("T sum = T(float(x[start + i]) + float(d[start + i]))",
                                          "T sum = float(x[start + i]) + float(d[start + i])", 0, "compile"),
    ("rope_pack", "wrong sign"): ("a * c - b * s", "a * c + b * s", 0, "wrong"),
    ("rope_pack", "wrong partner"): ("j = i + HALF", "j = i + HALF - 1", 0, "schedule wrong"),
    ("rope_pack", "off by one"): ("i < HALF", "i <= HALF", 0, "crash schedule wrong"),
    ("rope_pack", "wrong lane"): ("i = lane; i < HALF", "i = lane + 1; i < HALF", 0, "wrong"),
    ("rope_pack", "rest not copied"): ("i = ROTATED + lane", "i = DIM", 0, "wrong"),
    ("rope_pack", "one position for all rows"): ("start[ROWS > 1 ? row : 0]", "start[0]", 0, "wrong"),
    ("rope_pack", "one position for all tokens"): (" + int(token)", "", 0, "wrong"),
    ("rope_pack", "norm over one lane"): ("simd_sum(squares)", "squares", 0, "wrong"),
    ("rope_pack", "keys normed as queries"): ("head < HEADS ? q_weight[i] : k_weight[i]", "q_weight[i]", 0, "wrong"),
    ("rope_pack", "values one head late"): ("(head - HEADS)", "(head - HEADS + 1)", 0, "crash wrong schedule"),
    ("glu_gemv", "tail read beyond x"): ("k + i < WIDTH ? float(x[row * WIDTH + k + i]) : 0.0f", "float(x[row * WIDTH + k + i])",
                                         0, "crash"),
    ("glu_gemv", "gate and up swapped"): ("(half_index ? HIDDEN : 0)", "(half_index ? 0 : HIDDEN)", 0, "wrong"),
    ("glu_gemv", "no bias"): ("+ float(biases[g]) * sum", "", 0, "wrong"),
    ("glu_gemv", "wrong group"): ("+ k / GROUP;", "+ k / (GROUP * 2);", 0, "wrong"),
    ("glu_gemv", "wrong nibble"): ("(BITS * i)) &", "(BITS * (i ^ 1))) &", 0, "wrong"),
    ("glu_gemv", "rows beyond the end"): ("lane == 0 && first + o < HIDDEN", "lane == 0", 0, "crash wrong schedule"),
    ("glu_gemv", "one lane's sum"): ("simd_sum(gate[o])", "gate[o]", 0, "wrong"),
    ("glu_gemv", "sums in two branches"): ("const float u = float(T(simd_sum(up[o])));",
        "float u = up[o];\nif (lane % 2) u = simd_sum(u);\nelse u = simd_sum(u);", 0, "wrong"),
    ("glu_gemv", "sum not started"): ("float up[OUTPUTS] = {0}", "float up[OUTPUTS]", 0, "wrong"),
    ("decode_attention", "barrier missing"): (BARRIER, "", 0, "schedule wrong"),
    ("decode_attention", "no zero-init"): ("float score = 0.0f", "float score", 0, "wrong"),
    ("decode_attention", "off by one"): ("key < keys", "key <= keys", 0, "crash wrong"),
    ("decode_attention", "old sums not shrunk"): ("total * shrink + p", "total + p", 0, "wrong"),
    ("decode_attention", "mask ignored"): ("if (MASKED && ", "if (false && ", 0, "wrong"),
    ("decode_attention", "a simdgroup left out"): ("SIMDGROUPS; g++) {\n  whole", "SIMDGROUPS - 1; g++) {\n  whole", 0, "wrong"),
    ("decode_attention", "wrong lane"): ("channel = i * 32 + int(lane)", "channel = i * 32 + int(lane ^ 1)", 1, "wrong"),
    ("decode_attention", "one group writes for all"): ("best[group] = highest", "best[0] = highest", 0, "wrong schedule"),
    ("decode_attention", "strides of the other"): ("key * v_strides[2]", "key * k_strides[2]", 0, "crash wrong"),
    ("decode_attention", "no softcap"): ("if (CAPPED)", "if (false)", 0, "wrong"),
    ("decode_attention", "wrong shared head"): ("head / GROUPS", "head % GROUPS", 0, "crash wrong"),
    ("decode_attention", "window one wide"): ("mask[mask_at + key", "mask[mask_at + (key + 1)", 0, "crash wrong"),
}  # fmt: skip


def mutated(key: tuple[str, str]) -> str:
    old, new, occurrence, _ = MUTANTS[key]
    parts = metal.get(key[0]).source().split(old)
    assert len(parts) > occurrence + 1, f"{old!r} is not in {key[0]}.metal"
    return old.join(parts[: occurrence + 1]) + new + old.join(parts[occurrence + 1 :])
