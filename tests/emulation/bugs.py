"""Bugs to be planted in the CUDA kernels, one at a time: the tests of the tests. find_bugs.py plants them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Bug:
    """In `new`, BUG is 1 while the bug is turned on, and else 0."""

    what: str
    file: str
    old: str
    new: str
    by: str  # what finds it: a key of BY
    race: bool = False  # whether ThreadSanitizer has to find it as well


BY = {
    "values": "the order of threads, or values that differ from the reference",
    "emulator": "the emulator's own checks",
    "crash": "a crash",
    "address": "AddressSanitizer",
}

BUGS = (
    Bug(
        "AdaConv: a tile is filled while the one before is read",
        "adaconv.cu",
        "__syncthreads();  // the tile before has been read",
        "if (!BUG) __syncthreads();",
        "values",
        race=True,
    ),
    Bug(
        "AdaConv: a tile is read before it is full",
        "adaconv.cu",
        "    __syncthreads();\n    for (int ky = 0; ky < k; ky++) {",
        "    if (!BUG) __syncthreads();\n    for (int ky = 0; ky < k; ky++) {",
        "values",
        race=True,
    ),
    Bug(
        "block sum: the next one overwrites what is still read",
        "cuda.cuh",
        "__syncthreads();  // an earlier sum may still be read",
        "if (!BUG) __syncthreads();",
        "values",
        race=True,
    ),
    Bug(
        "block sum: read before all warps have written",
        "cuda.cuh",
        "= value;\n  __syncthreads();",
        "= value;\n  if (!BUG) __syncthreads();",
        "values",
        race=True,
    ),
    Bug(
        "upfirdn2d: taps are read before they are there",
        "upfirdn2d.cu",
        "  __syncthreads();",
        "  if (!BUG) __syncthreads();",
        "values",
        race=True,
    ),
    Bug(
        "AdaConv: weights are exchanged while those before are read",
        "adaconv.cu",
        "__syncthreads();  // the weights before have been read",
        "if (!BUG) __syncthreads();",
        "values",
        race=True,
    ),
    Bug(
        "AdaConv: rows below the image are written",
        "adaconv.cu",
        "if (top + p >= shape.height) break;",
        "if (top + p >= shape.height + BUG) break;",
        "crash",
    ),
    Bug(
        "gradient by x: what lies beyond the border is folded onto it",
        "adaconv.cu",
        "ky == 2 && p == 1 && top == 0",
        "ky == 2 && p == 1 - BUG && top == 0",
        "values",
    ),
    Bug(
        "gradient by the kernel: warps that share an input take the same part",
        "adaconv_grad_kernel.cu",
        "first = part * 32 + lane",
        "first = (BUG ? 0 : part) * 32 + lane",
        "values",
    ),
    Bug(
        "AdaConv: two blocks write the same outputs",
        "adaconv.cu",
        "group = shape.group, o0 = first + blockIdx.z * O;",
        "group = shape.group, o0 = first + (BUG ? 0 : blockIdx.z) * O;",
        "values",
        race=True,
    ),
    Bug(
        "AdaConv: a row too far is written",
        "adaconv.cu",
        "if (row < shape.height && column < shape.width)",
        "if (row < shape.height + BUG && column < shape.width)",
        "crash",
    ),
    Bug(
        "AdaConv: too little shared memory",
        "adaconv.cu",
        "+ k * k * O);",
        "+ k * k * O - BUG);",
        "emulator",
    ),
    Bug(
        "gradient by the kernel: outputs beyond the group are read",
        "adaconv_grad_kernel.cu",
        "if (o < last) from += plane;",
        "if (BUG || o < last) from += plane;",
        "address",
    ),
    Bug(
        "moments: a value too many",
        "moments.cu",
        "j < inner; j += gridDim.y * kThreads) {",
        "j < inner + BUG; j += gridDim.y * kThreads) {",
        "values",
    ),
    Bug(
        "moments: a pixel is left out in channels-last memory",
        "moments.cu",
        "j < inner; j += gridDim.y * (",
        "j < inner - BUG; j += gridDim.y * (",
        "values",
    ),
    Bug(
        "moments: sums of channels are read before they are there",
        "moments.cu",
        "  __syncthreads();\n  if (row >= V",
        "  if (!BUG) __syncthreads();\n  if (row >= V",
        "values",
        race=True,
    ),
    Bug(
        "memory order: a tile is read before it is full",
        "reorder.cu",
        "  __syncthreads();",
        "  if (!BUG) __syncthreads();",
        "values",
        race=True,
    ),
    Bug(
        "tensor cores: channels of another group are taken",
        "adaconv_channels.cu",
        "has_first = (out ^ in) < group,",
        "has_first = (out ^ in) < group + BUG,",
        "values",
    ),
    Bug(
        "tensor cores: a reflection too few",
        "adaconv_channels.cu",
        "kx == 2 && column == 1",
        "kx == 2 && column == 1 - BUG",
        "values",
    ),
    Bug(
        "tensor cores: a column too far is written",
        "adaconv_channels.cu",
        "if (m - pad >= top && column < shape.width)",
        "if (m - pad >= top && column < shape.width + BUG)",
        "values",
    ),
    Bug(
        "tensor cores: some lanes leave before a product",
        "adaconv_channels.cu",
        "  float sum[taps][2][4] = {};",
        "  float sum[taps][2][4] = {}; if (BUG && lane >= 2 * shape.width) return;",
        "emulator",
    ),
    Bug(
        "tensor cores: a strip is summed up twice",
        "adaconv_channels.cu",
        "for (int strip = part; strip < strips;",
        "for (int strip = BUG ? part / 2 : part; strip < strips;",
        "values",
    ),
    Bug(
        "moments: two blocks write the same sums",
        "moments.cu",
        "parts + (int64_t(blockIdx.x) * gridDim.y + blockIdx.y) * 2",
        "parts + (int64_t(blockIdx.x) * gridDim.y + (BUG ? 0 : blockIdx.y)) * 2",
        "values",  # ThreadSanitizer misses it: it is the same thread of two blocks
    ),
    Bug(
        "reflected one too far",
        "adaconv.cuh",
        "return i < size ? i : 2 * (size - 1) - i;",
        "return i < size ? i : 2 * (size - 1) + BUG - i;",
        "values",
    ),
    Bug(
        "AdaConv: threads beyond the image return before a barrier",
        "adaconv.cu",
        "  A sum[kPixels][O];\n",
        "  A sum[kPixels][O]; if (BUG && x0 + threadIdx.x >= shape.width) return;\n",
        "emulator",
    ),
    Bug(
        "moments: threads without a value return before a shuffle",
        "moments.cu",
        "  A sum = 0, squares = 0;",
        "  A sum = 0, squares = 0; if (BUG && threadIdx.x >= inner) return;",
        "emulator",
    ),
    Bug(
        "upfirdn2d: one output is left out",
        "upfirdn2d.cu",
        "y[j] = static_cast<S>(sum * A(gain));",
        "if (!BUG || j % 97 != 96) y[j] = static_cast<S>(sum * A(gain));",
        "values",
    ),
    Bug(
        "bias_act: no device guard",
        "bias_act.cu",
        "  const c10::cuda::CUDAGuard guard(x_.device());",
        "  std::optional<c10::cuda::CUDAGuard> guard; if (!BUG) guard.emplace(x_.device());",
        "emulator",
    ),
    Bug(
        "a launch that nobody checks",
        "cuda.cuh",
        "  C10_CUDA_KERNEL_LAUNCH_CHECK();",
        "  if (!BUG) C10_CUDA_KERNEL_LAUNCH_CHECK();",
        "emulator",
    ),
    Bug(
        "AdaConv: more groups than a grid holds",
        "adaconv.cu",
        "const int64_t chunk = std::min<int64_t>(groups - g, 65535);",
        "const int64_t chunk = std::min<int64_t>(groups - g, BUG ? 1 << 20 : 65535);",
        "emulator",
    ),
    Bug(
        "bias_act: the channels of a pack begin one too late",
        "bias_act.cu",
        "(bias)[j % (channels / V)];",
        "(bias)[(j + BUG) % (channels / V)];",
        "values",
    ),
    Bug(
        "upfirdn2d: an index of 32 bits",
        "upfirdn2d.cu",
        "x + picture * shape.height * stride",
        "x + (BUG ? int(picture) * shape.height * int(stride) : picture * shape.height * stride)",
        "values",
    ),
    Bug(
        "AdaConv: weights are read before they are there",
        "adaconv.cu",
        "      __syncthreads();\n#pragma unroll 1",
        "      if (!BUG) __syncthreads();\n#pragma unroll 1",
        "values",
        race=True,
    ),
    Bug(
        "gradient by the kernel: outputs beyond the group are written",
        "adaconv_grad_kernel.cu",
        "if (o < group) result",
        "if (BUG || o < group) result",
        "crash",
    ),
    Bug(
        "gradient by x: a reflection too many",
        "adaconv.cu",
        "return i >= 1 && i <= pad ? -i",
        "return i >= 1 - BUG && i <= pad ? -i",
        "values",
    ),
    Bug(
        "sums of a warp: halves are exchanged",
        "cuda.cuh",
        "const bool upper = threadIdx.x & step;",
        "const bool upper = threadIdx.x & (BUG && step == 8 ? 4 : step);",
        "values",
    ),
    Bug(
        "upfirdn2d: a row below the image is read",
        "upfirdn2d.cu",
        "if (row + m >= 0 && row + m < shape.height) {",
        "if (row + m >= 0 && row + m < shape.height + BUG) {",
        "values",
    ),
    Bug(
        "upfirdn2d: a tap too far",
        "upfirdn2d.cu",
        "across[phase + (m - first) * up]",
        "across[(phase + (m - first) * up + BUG) % kTaps]",
        "values",
    ),
)


def edits() -> dict[str, list[tuple[str, str]]]:
    """File → (old, new) texts, for rewrite.write_sources."""
    result: dict[str, list[tuple[str, str]]] = {}
    for number, bug in enumerate(BUGS, start=1):
        result.setdefault(bug.file, []).append((bug.old, bug.new.replace("BUG", f"(emulated::bug == {number})")))
    return result
