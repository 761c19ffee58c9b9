// Mean and variance of every plane on the CPU, in one pass: what instance normalization needs.

#include "simd.h"

#include <torch/library.h>

namespace {

constexpr int64_t kAhead = 4096;  // bytes: the hardware's own fetching ahead ends with each page

template <class S>
void moments(const at::Tensor& x_, at::Tensor& mean_, at::Tensor& var_) {
  using A = Accumulate<S>;
  using V = Simd<A>;
  const int64_t planes = x_.size(0) * x_.size(1), inner = x_.size(2) * x_.size(3);
  const S* x = x_.const_data_ptr<S>();
  S *mean = mean_.mutable_data_ptr<S>(), *var = var_.mutable_data_ptr<S>();
  at::parallel_for(0, planes, 1 + (1 << 15) / inner, [&](int64_t begin, int64_t end) {
    for (int64_t plane = begin; plane < end; plane++) {
      const S* from = x + plane * inner;
      const A origin = static_cast<A>(from[0]);  // a large mean would cancel most digits of Σ x²
      double sum = 0, squares = 0;
      int64_t j = 0;
      while (j + V::width <= inner) {
        typename V::Vector s = {}, q = {};  // of 64 vectors, then in float64
        for (int64_t v = 0; v < 64 && j + V::width <= inner; v++, j += V::width) {
          __builtin_prefetch(from + j + kAhead / int64_t(sizeof(S)));
          const typename V::Vector d = load_as<A>(from + j) - origin;
          s += d, q += d * d;
        }
        sum += V::sum(s), squares += V::sum(q);
      }
      for (; j < inner; j++) {
        const double d = static_cast<A>(from[j]) - origin;
        sum += d, squares += d * d;
      }
      const double shift = sum / inner;
      mean[plane] = static_cast<S>(origin + shift);
      var[plane] = static_cast<S>(std::max(squares / inner - shift * shift, 0.0));
    }
  });
}

std::tuple<at::Tensor, at::Tensor> moments_cpu(const at::Tensor& x) {
  check_moments(x);
  at::Tensor mean = at::empty({x.size(0), x.size(1)}, x.options()), var = at::empty(mean.sizes(), x.options());
  if (mean.numel() > 0)
    DISPATCH_FLOATING(x.scalar_type(), "moments", [&] { moments<scalar_t>(x.contiguous(), mean, var); });
  return {mean, var};
}

}  // namespace

TORCH_LIBRARY_IMPL(adaconv, CPU, m) { m.impl("moments", &moments_cpu); }
