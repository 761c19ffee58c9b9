// The derivatives of all ops, made of the ops themselves: so they can be differentiated again, on any device.
//
// AdaConv is bilinear, and its forward, gradient by x and gradient by the kernel are a closed family: the derivatives
// of each are the other two. So are those of a learned convolution, whose gradient by x is a convolution as well (with
// its kernel turned round, and 2 − padding). upfirdn2d is its own derivative, with up and down exchanged and the filter
// turned round.

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;
using OptionalTensor = std::optional<Tensor>;

template <class Signature>
auto find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

Tensor adaconv(const Tensor& x, const Tensor& kernel, const OptionalTensor& bias, bool reflect) {
  static auto op = find<Tensor(const Tensor&, const Tensor&, const OptionalTensor&, bool)>("adaconv::adaconv");
  return op.call(x, kernel, bias, reflect);
}
Tensor adaconv_grad_x(const Tensor& dy, const Tensor& kernel, bool reflect) {
  static auto op = find<Tensor(const Tensor&, const Tensor&, bool)>("adaconv::adaconv_grad_x");
  return op.call(dy, kernel, reflect);
}
Tensor adaconv_grad_kernel(const Tensor& x, const Tensor& dy, c10::SymIntArrayRef shape, bool reflect) {
  static auto op =
      find<Tensor(const Tensor&, const Tensor&, c10::SymIntArrayRef, bool)>("adaconv::adaconv_grad_kernel");
  return op.call(x, dy, shape, reflect);
}
std::tuple<Tensor, Tensor> moments(const Tensor& x) {
  static auto op = find<std::tuple<Tensor, Tensor>(const Tensor&)>("adaconv::moments");
  return op.call(x);
}
Tensor upfirdn2d(const Tensor& x, const Tensor& f, int64_t up, int64_t down, c10::SymIntArrayRef padding, double gain) {
  static auto op =
      find<Tensor(const Tensor&, const Tensor&, int64_t, int64_t, c10::SymIntArrayRef, double)>("adaconv::upfirdn2d");
  return op.call(x, f, up, down, padding, gain);
}
Tensor bias_act(const Tensor& x, const OptionalTensor& bias, int64_t act, double gain, double clamp) {
  static auto op = find<Tensor(const Tensor&, const OptionalTensor&, int64_t, double, double)>("adaconv::bias_act");
  return op.call(x, bias, act, gain, clamp);
}
std::tuple<Tensor, Tensor> bias_act_grad(const Tensor& dy, const Tensor& y, int64_t act, double gain, double clamp,
                                         bool with_bias) {
  static auto op = find<std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, int64_t, double, double, bool)>(
      "adaconv::bias_act_grad");
  return op.call(dy, y, act, gain, clamp, with_bias);
}

Tensor winograd(const Tensor& x, const Tensor& weight, int64_t padding) {
  static auto op = find<Tensor(const Tensor&, const Tensor&, int64_t)>("adaconv::winograd");
  return op.call(x, weight, padding);
}
Tensor winograd_grad_weight(const Tensor& x, const Tensor& dy, int64_t padding) {
  static auto op = find<Tensor(const Tensor&, const Tensor&, int64_t)>("adaconv::winograd_grad_weight");
  return op.call(x, dy, padding);
}

// Where an input needs no gradient, its place stays undefined.

struct Adaconv : Function<Adaconv> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& kernel, const OptionalTensor& bias,
                        bool reflect) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({x, kernel});
    ctx->saved_data["reflect"] = reflect;
    ctx->saved_data["bias"] = bias.has_value();
    return adaconv(x, kernel, bias, reflect);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &dy = grads[0], &x = saved[0], &kernel = saved[1];
    const bool reflect = ctx->saved_data["reflect"].toBool();
    Tensor dx, dkernel, dbias;
    if (ctx->needs_input_grad(0)) dx = adaconv_grad_x(dy, kernel, reflect);
    if (ctx->needs_input_grad(1)) dkernel = adaconv_grad_kernel(x, dy, kernel.sym_sizes(), reflect);
    if (ctx->saved_data["bias"].toBool() && ctx->needs_input_grad(2)) dbias = dy.sum({2, 3});
    return {dx, dkernel, dbias, Tensor()};
  }
};

struct AdaconvGradX : Function<AdaconvGradX> {
  static Tensor forward(AutogradContext* ctx, const Tensor& dy, const Tensor& kernel, bool reflect) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({dy, kernel});
    ctx->saved_data["reflect"] = reflect;
    return adaconv_grad_x(dy, kernel, reflect);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &ddx = grads[0], &dy = saved[0], &kernel = saved[1];
    const bool reflect = ctx->saved_data["reflect"].toBool();
    Tensor ddy, dkernel;
    if (ctx->needs_input_grad(0)) ddy = adaconv(ddx, kernel, std::nullopt, reflect);
    if (ctx->needs_input_grad(1)) dkernel = adaconv_grad_kernel(ddx, dy, kernel.sym_sizes(), reflect);
    return {ddy, dkernel, Tensor()};
  }
};

struct AdaconvGradKernel : Function<AdaconvGradKernel> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& dy, c10::SymIntArrayRef shape,
                        bool reflect) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({x, dy});
    ctx->saved_data["reflect"] = reflect;
    return adaconv_grad_kernel(x, dy, shape, reflect);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &ddkernel = grads[0], &x = saved[0], &dy = saved[1];
    const bool reflect = ctx->saved_data["reflect"].toBool();
    Tensor dx, ddy;
    if (ctx->needs_input_grad(0)) dx = adaconv_grad_x(dy, ddkernel, reflect);
    if (ctx->needs_input_grad(1)) ddy = adaconv(x, ddkernel, std::nullopt, reflect);
    return {dx, ddy, Tensor(), Tensor()};
  }
};

// ∂mean/∂x = 1/HW, ∂var/∂x = 2 (x − mean) / HW.
struct Moments : Function<Moments> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x) {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto [mean, var] = moments(x);
    ctx->save_for_backward({x, mean});
    return {mean, var};
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &mean = saved[1];
    const at::Scalar pixels(x.sym_size(2) * x.sym_size(3));
    const auto spread = [](const Tensor& t) { return t.unsqueeze(2).unsqueeze(3); };
    return {at::addcmul(spread(grads[0].div(pixels)), spread(2 * grads[1].div(pixels)), x - spread(mean))};
  }
};

struct UpFirDn2d : Function<UpFirDn2d> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& f, int64_t up, int64_t down,
                        c10::SymIntArrayRef padding, double gain) {
    at::AutoDispatchBelowADInplaceOrView below;
    const Tensor y = upfirdn2d(x, f, up, down, padding, gain);
    ctx->save_for_backward({f});
    ctx->saved_data["up"] = up;
    ctx->saved_data["down"] = down;
    ctx->saved_data["gain"] = gain;
    // the padding of the gradient, along x and along y: what makes its size that of x again
    std::vector<c10::SymInt> back;
    for (int axis : {3, 2}) {
      const c10::SymInt before = padding[axis == 3 ? 0 : 2];
      back.push_back(f.sym_size(0) - 1 - before);
      back.push_back(x.sym_size(axis) * up - y.sym_size(axis) * down + before - up + 1);
    }
    ctx->saved_data["padding"] = back;
    return y;
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const Tensor f = ctx->get_saved_variables()[0];
    const auto padding = ctx->saved_data["padding"].toSymIntVector();
    const Tensor dx = upfirdn2d(grads[0], f.flip(0), ctx->saved_data["down"].toInt(), ctx->saved_data["up"].toInt(),
                                padding, ctx->saved_data["gain"].toDouble());
    return {dx, Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

struct BiasAct : Function<BiasAct> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const OptionalTensor& bias, int64_t act, double gain,
                        double clamp) {
    at::AutoDispatchBelowADInplaceOrView below;
    const Tensor y = bias_act(x, bias, act, gain, clamp);
    ctx->save_for_backward({y});
    ctx->saved_data["act"] = act;
    ctx->saved_data["gain"] = gain;
    ctx->saved_data["clamp"] = clamp;
    ctx->saved_data["bias"] = bias.has_value();
    return y;
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    auto& data = ctx->saved_data;
    const bool with_bias = data["bias"].toBool() && ctx->needs_input_grad(1);
    const auto [dx, dbias] = bias_act_grad(grads[0], ctx->get_saved_variables()[0], data["act"].toInt(),
                                           data["gain"].toDouble(), data["clamp"].toDouble(), with_bias);
    return {dx, with_bias ? dbias : Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

// Both outputs are linear in dy; the sigmoids' slope depends on y as well.
struct BiasActGrad : Function<BiasActGrad> {
  static variable_list forward(AutogradContext* ctx, const Tensor& dy, const Tensor& y, int64_t act, double gain,
                               double clamp, bool with_bias) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->set_materialize_grads(false);
    ctx->save_for_backward({dy, y});
    ctx->saved_data["act"] = act;
    ctx->saved_data["gain"] = gain;
    ctx->saved_data["clamp"] = clamp;
    ctx->saved_data["with_bias"] = with_bias;
    const auto [dx, dbias] = bias_act_grad(dy, y, act, gain, clamp, with_bias);
    return {dx, dbias};
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &dy = saved[0], &y = saved[1];
    const int64_t act = ctx->saved_data["act"].toInt();
    const double gain = ctx->saved_data["gain"].toDouble(), clamp = ctx->saved_data["clamp"].toDouble();
    Tensor total = grads[0], ddy, d_y;
    if (grads[1].defined() && ctx->saved_data["with_bias"].toBool()) {
      Tensor dbias = grads[1].unsqueeze(0);
      while (dbias.dim() < dy.dim()) dbias = dbias.unsqueeze(-1);
      total = total.defined() ? total + dbias : dbias.expand_symint(dy.sym_sizes());
    }
    if (total.defined() && ctx->needs_input_grad(0))
      ddy = std::get<0>(bias_act_grad(total, y, act, gain, clamp, false));
    if (total.defined() && ctx->needs_input_grad(1) && act >= 3) {
      // sigmoid: of y (1 − y/gain); tanh: of gain − y²/gain
      Tensor slope = act == 3 ? 1 - 2 * y / gain : -2 * y / gain;
      if (clamp >= 0) slope = slope * (y.abs() < clamp);
      d_y = total * dy * slope;
    }
    return {ddy, d_y, Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

// A kernel [O, I, 3, 3] with which the gradient by x is convolved.
Tensor turned(const Tensor& weight) { return weight.flip({2, 3}).transpose(0, 1); }

struct Winograd : Function<Winograd> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, int64_t padding) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({x, weight});
    ctx->saved_data["padding"] = padding;
    return winograd(x, weight, padding);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &dy = grads[0], &x = saved[0], &weight = saved[1];
    const int64_t padding = ctx->saved_data["padding"].toInt();
    Tensor dx, dweight;
    if (ctx->needs_input_grad(0)) dx = winograd(dy, turned(weight), 2 - padding);
    if (ctx->needs_input_grad(1)) dweight = winograd_grad_weight(x, dy, padding);
    return {dx, dweight, Tensor()};
  }
};

struct WinogradGradWeight : Function<WinogradGradWeight> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& dy, int64_t padding) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({x, dy});
    ctx->saved_data["padding"] = padding;
    return winograd_grad_weight(x, dy, padding);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &ddweight = grads[0], &x = saved[0], &dy = saved[1];
    const int64_t padding = ctx->saved_data["padding"].toInt();
    Tensor dx, ddy;
    if (ctx->needs_input_grad(0)) dx = winograd(dy, turned(ddweight), 2 - padding);
    if (ctx->needs_input_grad(1)) ddy = winograd(x, ddweight, padding);
    return {dx, ddy, Tensor()};
  }
};

std::tuple<Tensor, Tensor> pair(const variable_list& list) { return {list[0], list[1]}; }

}  // namespace

TORCH_LIBRARY_IMPL(adaconv, Autograd, m) {
  m.impl("adaconv", [](const Tensor& x, const Tensor& kernel, const OptionalTensor& bias, bool reflect) {
    return Adaconv::apply(x, kernel, bias, reflect);
  });
  m.impl("adaconv_grad_x",
         [](const Tensor& dy, const Tensor& kernel, bool reflect) { return AdaconvGradX::apply(dy, kernel, reflect); });
  m.impl("adaconv_grad_kernel", [](const Tensor& x, const Tensor& dy, c10::SymIntArrayRef shape, bool reflect) {
    return AdaconvGradKernel::apply(x, dy, shape, reflect);
  });
  m.impl("moments", [](const Tensor& x) { return pair(Moments::apply(x)); });
  m.impl("upfirdn2d", [](const Tensor& x, const Tensor& f, int64_t up, int64_t down, c10::SymIntArrayRef padding,
                         double gain) { return UpFirDn2d::apply(x, f, up, down, padding, gain); });
  m.impl("bias_act", [](const Tensor& x, const OptionalTensor& bias, int64_t act, double gain, double clamp) {
    return BiasAct::apply(x, bias, act, gain, clamp);
  });
  m.impl("winograd",
         [](const Tensor& x, const Tensor& weight, int64_t padding) { return Winograd::apply(x, weight, padding); });
  m.impl("winograd_grad_weight",
         [](const Tensor& x, const Tensor& dy, int64_t padding) { return WinogradGradWeight::apply(x, dy, padding); });
  m.impl("bias_act_grad", [](const Tensor& dy, const Tensor& y, int64_t act, double gain, double clamp,
                             bool with_bias) { return pair(BiasActGrad::apply(dy, y, act, gain, clamp, with_bias)); });
}
