// The schemas of all ops. Their kernels are in files of their own, their derivatives in autograd.cpp.

#include <torch/library.h>

TORCH_LIBRARY(adaconv, m) {
  m.def("adaconv(Tensor x, Tensor kernel, Tensor? bias, bool reflect) -> Tensor");
  m.def("adaconv_grad_x(Tensor dy, Tensor kernel, bool reflect) -> Tensor");
  m.def("adaconv_grad_kernel(Tensor x, Tensor dy, SymInt[] shape, bool reflect) -> Tensor");
  m.def("moments(Tensor x) -> (Tensor mean, Tensor var)");
  m.def("upfirdn2d(Tensor x, Tensor f, int up, int down, SymInt[] padding, float gain) -> Tensor");
  m.def("bias_act(Tensor x, Tensor? bias, int act, float gain, float clamp) -> Tensor");
  m.def("conv3x3(Tensor x, Tensor kernel, Tensor? bias, int outputs, bool reflect, bool relu) -> Tensor");
  m.def("winograd(Tensor x, Tensor weight, int padding) -> Tensor");
  m.def("winograd_grad_weight(Tensor x, Tensor dy, int padding) -> Tensor");
  m.def(
      "bias_act_grad(Tensor dy, Tensor y, int act, float gain, float clamp, bool with_bias=True)"
      " -> (Tensor dx, Tensor db)");
}
