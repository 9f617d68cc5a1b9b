// Runs every launcher on small problems and compares what it writes with the formulas on the host.
//
// It needs no torch, so a sanitizer sees only our kernels and takes seconds per tool:
//
//     flags="-std=c++20 -O3 -fmad=false --expt-relaxed-constexpr -lineinfo"
//     nvcc $flags -arch=sm_90 csrc/*.cu -o standalone_check
//     for tool in memcheck racecheck initcheck synccheck; do
//       compute-sanitizer --tool $tool --error-exitcode 1 ./standalone_check
//     done
//
// csrc/*.cu includes this file, which the extension's build leaves out. Exit status: 0 when all results
// agree, 1 when some do not, 2 when CUDA reports an error. An argument limits it to the first so many
// layouts. A new launcher gets a check of its own and a line in CHECKS, at the end.
#include "standalone_network.h"

using namespace refimpl;
using namespace refimpl::standalone;

namespace {

template <class X>
void check_noise(const Case& c) {
  const auto x0 = normals<X>(c.count(), 1), eps = normals<X>(c.count(), 2);
  const auto alpha = per_sample<double>(c, 0.9, -0.15), sigma = per_sample<double>(c, 0.1, 0.15);
  const Device<X> x0_(x0, c.shifted), eps_(eps, c.shifted);
  const Device<double> alpha_(alpha), sigma_(sigma);
  const Device<int64_t> key_(keys(c));
  const auto run = [&](const char* what, bool keyed, float offset) {
    const Device<X> out = result<X>(c.count(), c.shifted);
    const Noise noise = {keyed ? nullptr : eps_.data, key_.data, offset};
    require(
        cuda::noise(
            {c.layout, x0_.data, noise, {alpha_.data, 1, true}, {sigma_.data, 1, true}, out.data, dtype<X>},
            stream),
        what);
    const auto values = noise_of(c, keyed ? nullptr : &eps, offset);
    std::vector<X> wanted(c.count());
    for (size_t k = 0; k < wanted.size(); ++k) {
      const size_t b = k / c.layout.sample();
      wanted[k] = narrow<X>(noised(float(alpha[b]), widen(x0[k]), float(sigma[b]), values[k]));
    }
    expect_bits(c, what, out.values(), wanted);
  };
  run("add_noise", false, 0);
  for (const float offset : OFFSETS) run("add_keyed_noise", true, offset);
}

void check_keyed_normal(const Case& c) {
  if (c.layout.channels_last) return;  // its result is contiguous
  const Device<int64_t> key_(keys(c));
  for (const float offset : OFFSETS) {
    const Device<float> out = result<float>(c.count(), c.shifted);
    require(
        cuda::noise({c.layout, nullptr, {nullptr, key_.data, offset}, {}, {}, out.data, DType::f32}, stream),
        "keyed_normal");
    expect_bits(c, "keyed_normal", out.values(), noise_of<float>(c, nullptr, offset));
  }
}

template <class P, class X>
void check_loss(const Case& c) {
  const int64_t n = c.layout.sample();
  const size_t batch = size_t(c.layout.batch);
  const auto prediction = normals<P>(c.count(), 3);
  const auto x0 = normals<X>(c.count(), 4), eps = normals<X>(c.count(), 5);
  const auto alpha = per_sample<float>(c, 0.9, -0.15), sigma = per_sample<float>(c, 0.1, 0.15);
  const auto weight = per_sample<double>(c, 0.5, 0.75, 2), incoming = per_sample<double>(c, 0.25, 0.125);
  const double expected = 0.375;  // the incoming gradient of every seventh sample from the second on
  const Device<P> prediction_(prediction, c.shifted);
  const Device<X> x0_(x0, c.shifted), eps_(eps, c.shifted);
  const Device<float> alpha_(alpha), sigma_(sigma);
  const Device<double> weight_(weight), incoming_(incoming);
  const Device<int64_t> key_(keys(c));
  const auto run = [&](const char* what, bool keyed, float offset) {
    LossProblem p = {};
    p.layout = c.layout;
    p.prediction = prediction_.data;
    p.x0 = x0_.data;
    p.noise = {keyed ? nullptr : eps_.data, key_.data, offset};
    p.alpha = {alpha_.data, 1, false};
    p.sigma = {sigma_.data, 1, false};
    p.weight = {weight_.data, 2, true};
    p.expected = expected;
    p.prediction_dtype = dtype<P>;
    p.latent_dtype = dtype<X>;
    const auto values = noise_of(c, keyed ? nullptr : &eps, offset);
    std::vector<double> losses(batch);
    std::vector<P> grads(c.count()), corrected(c.count());
    const std::vector<P> untouched = result<P>(1).values();
    for (size_t k = 0; k < grads.size(); ++k) {
      const size_t b = k / n;
      const float v = velocity(alpha[b], widen(x0[k]), sigma[b], values[k]), guess = widen(prediction[k]);
      const auto slope = [&](double by) {
        return narrow<P>(float(gradient_scale(float(by), weight[2 * b], double(n))) *
                         loss_term_derivative(guess, v));
      };
      losses[b] += loss_term(guess, v);
      grads[k] = slope(expected);
      corrected[k] = incoming[b] == expected ? untouched[0] : slope(incoming[b]);
    }
    for (size_t b = 0; b < batch; ++b) losses[b] = weighted_mean(weight[2 * b], losses[b], double(n));

    const Device<float> partial = scratch<float>(size_t(cuda::loss_partials(p)));
    const Device<float> loss = result<float>(batch), alone = result<float>(batch);
    const Device<P> grad = result<P>(c.count(), c.shifted), correction = result<P>(c.count(), c.shifted);
    p.partial = partial.data;
    p.loss = alone.data;
    require(cuda::loss(p, stream), what);
    p.loss = loss.data;
    p.grad = grad.data;
    require(cuda::loss(p, stream), what);
    p.loss = nullptr;
    p.incoming = {incoming_.data, 1, true};
    p.only_unexpected = true;
    p.grad = correction.data;
    require(cuda::loss(p, stream), what);
    // A tile's sum rounds once per addition: 16 in a thread at most, 5 in a warp and 7 over the warps.
    expect_close(c, what, loss.values(), losses, losses, 28 * 0x1p-24);
    expect_bits(c, "the loss without a gradient", alone.values(), loss.values());
    expect_bits(c, "the gradient", grad.values(), grads);
    expect_bits(c, "the corrected gradient", correction.values(), corrected);
  };
  run("v_loss", false, 0);
  for (const float offset : OFFSETS) run("keyed_v_loss", true, offset);
}

template <class X>
void check_moments(const Case& c) {
  const size_t channels = size_t(c.layout.channels);
  const double count = double(c.layout.batch * c.layout.area);
  const auto x = normals<X>(c.count(), 6);
  const Device<X> x_(x, c.shifted);
  std::vector<double> means(channels), sizes(channels), m2s(channels);
  const auto each = [&](auto f) {
    for (size_t k = 0; k < x.size(); ++k)
      f(size_t(c.channel(int64_t(k) % c.layout.sample())), double(widen(x[k])));
  };
  each([&](size_t channel, double value) { means[channel] += value, sizes[channel] += fabs(value); });
  for (size_t i = 0; i < channels && count > 0; ++i) means[i] /= count, sizes[i] /= count;
  each([&](size_t channel, double value) {
    m2s[channel] += (value - means[channel]) * (value - means[channel]);
  });

  MomentsProblem p = {};
  p.layout = c.layout;
  p.x = x_.data;
  p.dtype = dtype<X>;
  const Device<Moments> partial = scratch<Moments>(size_t(cuda::moments_partials(p)));
  const Device<double> total = result<double>(1), mean = result<double>(channels),
                       m2 = result<double>(channels);
  p.partial = partial.data;
  p.count = total.data;
  p.mean = mean.data;
  p.m2 = m2.data;
  require(cuda::moments(p, stream), "channel_moments");
  // Both sides round once per element at most, in float64.
  const double rounding = (count + 1) * 0x1p-52;
  expect_close(c, "the count", total.values(), {count}, {count}, 0);
  expect_close(c, "the mean", mean.values(), means, sizes, rounding);
  expect_close(c, "m2", m2.values(), m2s, m2s, rounding);
}

void check_adamw_ema(const Case& c) {
  if (c.layout.channels_last) return;  // elements are elements in any order
  const size_t tensors = size_t(c.layout.batch), n = size_t(c.layout.sample());  // a sample is a tensor
  const auto weight = normals<float>(c.count(), 7), gradient = normals<float>(c.count(), 8),
             exp_avg = normals<float>(c.count(), 9), exp_avg_sq = squares(normals<float>(c.count(), 10)),
             average = normals<float>(c.count(), 11), step = per_sample<float>(c, 0, 3);
  const float scale = 0.75f;
  const AdamWRule rule = adamw_rule(1e-2, 0.9, 0.99, 1e-8, 0.1, 0.75);
  const Device<float> gradient_(gradient, c.shifted), scale_({scale});
  const auto run = [&](bool averages, float found_inf) {
    const Device<float> weight_(weight, c.shifted), exp_avg_(exp_avg, c.shifted),
        exp_avg_sq_(exp_avg_sq, c.shifted), average_(average, c.shifted), step_(step),
        found_inf_({found_inf});
    const Device<AdamWCorrection> corrections = scratch<AdamWCorrection>(tensors);
    std::vector<AdamWTensor> table;
    auto weights = weight, first = exp_avg, second = exp_avg_sq, means = average, steps = step;
    for (size_t k = 0; k < tensors; ++k) {
      table.push_back({weight_.data + k * n, gradient_.data + k * n, exp_avg_.data + k * n,
                       exp_avg_sq_.data + k * n, averages ? average_.data + k * n : nullptr, step_.data + k,
                       int64_t(n)});
      if (found_inf != 0) continue;
      const AdamWCorrection correction = correction_of(rule, double(++steps[k]));
      for (size_t i = k * n; i < (k + 1) * n; ++i)
        if (averages)
          adamw_ema_element<true>(weights[i], gradient[i], first[i], second[i], means[i], scale, rule,
                                  correction);
        else
          adamw_ema_element<false>(weights[i], gradient[i], first[i], second[i], means[i], scale, rule,
                                   correction);
    }
    AdamWProblem p = {table.data(), int64_t(tensors), rule, scale_.data, found_inf_.data, corrections.data};
    require(cuda::adamw_ema(p, stream), "adamw_ema_");
    expect_bits(c, "the first moment", exp_avg_.values(), first);
    expect_bits(c, "the second moment", exp_avg_sq_.values(), second);
    expect_bits(c, "the number of steps", step_.values(), steps);
    // The corrections go through pow, whose last place differs between the host and the device.
    const std::vector<double> sizes(c.count(), 8);  // no value is as large
    expect_close(c, "the weight", weight_.values(), {weights.begin(), weights.end()}, sizes, 0x1p-23);
    expect_close(c, "the average", average_.values(), {means.begin(), means.end()}, sizes, 0x1p-23);
  };
  run(true, 0);
  run(false, 0);
  run(true, 1);
}

constexpr void (*CHECKS[])(const Case&) = {
    check_noise<float>,
    check_noise<bf16>,
    check_noise<f16>,
    check_keyed_normal,
    check_loss<float, float>,
    check_loss<bf16, bf16>,
    check_loss<bf16, float>,
    check_loss<f16, f16>,
    check_loss<f16, float>,
    check_moments<float>,
    check_moments<bf16>,
    check_moments<f16>,
    check_geglu<float>,
    check_geglu<bf16>,
    check_geglu<f16>,
    check_group_norm_silu<float>,
    check_group_norm_silu<bf16>,
    check_group_norm_silu<f16>,
    check_layer_norm<float>,
    check_layer_norm<bf16>,
    check_layer_norm<f16>,
    check_adamw_ema,
};

}  // namespace

int main(int arguments, char** argument) {
  int device = 0, multiprocessors = 0;
  require(cudaGetDevice(&device), "cudaGetDevice");
  require(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device), "the device");
  require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  const int64_t many = 64 * multiprocessors + 8;  // samples: more tiles than blocks, twice over
  const std::vector<Layout> layouts = {
      {2, 4, 24, false},   {3, 3, 63, false},    {1, 4100, 1, false}, {1, 70, 15, false},
      {0, 4, 16, false},   {1, 1, 3, false},     {2, 4, 256, false},  {many, 4, 4, false},
      {1, 4, 5003, false}, {1, 4, 12800, false}, {2, 4, 6, false},
  };
  size_t left = arguments > 1 ? strtoul(argument[1], nullptr, 10) : layouts.size();
  for (const Layout& layout : layouts) {
    if (left-- == 0) break;
    for (const bool channels_last : {false, true})
      for (const bool shifted : {false, true}) {
        Case c = {layout, shifted};
        c.layout.channels_last = channels_last;
        for (const auto check : CHECKS) check(c);
      }
  }
  require(cudaStreamDestroy(stream), "cudaStreamDestroy");
  printf("%d results compared, %d of them wrong\n", compared, wrong);
  return wrong ? 1 : 0;
}
