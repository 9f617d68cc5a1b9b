// The checks of csrc/standalone_check.cu for the operations in the network's blocks.
#pragma once

#include "standalone.h"

namespace refimpl::standalone {

// Tokens are the case's samples and channels, and their width is its area.
template <class X>
void check_geglu(const Case& c) {
  if (c.layout.channels_last) return;
  const int64_t rows = c.layout.batch * c.layout.channels, width = c.layout.area;
  const auto packed = normals<X>(2 * c.count(), 11), incoming = normals<X>(c.count(), 12);
  const Device<X> packed_(packed, c.shifted), incoming_(incoming, c.shifted);
  const Device<X> out = result<X>(c.count(), c.shifted), slopes = result<X>(2 * c.count(), c.shifted);
  GegluProblem p = {rows, width, packed_.data, nullptr, out.data};
  p.dtype = dtype<X>;  // nvcc cannot pass on a braced list that ends in it
  require(cuda::geglu(p, stream), "geglu");
  p.incoming = incoming_.data;
  p.out = slopes.data;
  require(cuda::geglu(p, stream), "geglu");
  std::vector<X> wanted(c.count()), wanted_slopes(2 * c.count());
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t i = 0; i < width; ++i) {
      const size_t at_a = size_t(2 * row * width + i), at_b = at_a + size_t(width),
                   at = size_t(row * width + i);
      const float a = widen(packed[at_a]), b = widen(packed[at_b]);
      const auto both = gated_slopes(a, b, widen(incoming[at]));
      wanted[at] = narrow<X>(gated(a, b));
      wanted_slopes[at_a] = narrow<X>(both.by_a);
      wanted_slopes[at_b] = narrow<X>(both.by_b);
    }
  expect_bits(c, "geglu", out.values(), wanted);
  expect_bits(c, "the gradient of geglu", slopes.values(), wanted_slopes);
}

// Everything in float64, with the magnitudes of what is added.
struct NormTruth {
  std::vector<double> mean, deviation, y, dx, by_weight, by_bias, y_terms, dx_terms, weight_terms, bias_terms;
};

template <class X>
NormTruth norm_truth(const Case& c, int64_t groups, double eps, const std::vector<X>& x,
                     const std::vector<X>& incoming, const std::vector<float>& weight,
                     const std::vector<float>& bias) {
  const int64_t n = c.layout.sample(), channels = c.layout.channels, size = channels / groups;
  const size_t of_groups = size_t(c.layout.batch * groups), of_channels = size_t(channels);
  const double count = double(size * c.layout.area);
  NormTruth t;
  for (auto* values : {&t.mean, &t.deviation}) values->resize(of_groups);
  for (auto* values : {&t.y, &t.dx, &t.y_terms, &t.dx_terms}) values->resize(x.size());
  for (auto* values : {&t.by_weight, &t.by_bias, &t.weight_terms, &t.bias_terms}) values->resize(of_channels);
  std::vector<double> share(of_groups), slope(of_groups), dz(x.size()), z(x.size());
  const auto each = [&](auto f) {
    for (size_t k = 0; k < x.size(); ++k) {
      const int64_t channel = c.channel(int64_t(k) % n);
      f(k, size_t(channel), size_t(int64_t(k) / n * groups + channel / size));
    }
  };
  each([&](size_t k, size_t, size_t group) { t.mean[group] += widen(x[k]) / count; });
  each([&](size_t k, size_t, size_t group) {
    t.deviation[group] += (widen(x[k]) - t.mean[group]) * (widen(x[k]) - t.mean[group]);
  });
  for (double& value : t.deviation) value = reciprocal_deviation(value, count, eps);
  each([&](size_t k, size_t channel, size_t group) {
    z[k] = (widen(x[k]) - t.mean[group]) * t.deviation[group];
    const double affine = z[k] * weight[channel] + bias[channel];
    t.y[k] = silu(affine);
    const double size_of_z = (fabs(widen(x[k])) + fabs(t.mean[group])) * t.deviation[group];
    t.y_terms[k] = size_of_z * fabs(weight[channel]) + fabs(bias[channel]) + 1;
    dz[k] = widen(incoming[k]) * silu_derivative(affine);
    t.by_weight[channel] += dz[k] * z[k];
    t.by_bias[channel] += dz[k];
    t.weight_terms[channel] += fabs(widen(incoming[k])) * (size_of_z + 1) * t.y_terms[k];
    t.bias_terms[channel] += fabs(widen(incoming[k])) * t.y_terms[k];
    share[group] += weight[channel] * dz[k] / count;
    slope[group] += weight[channel] * dz[k] * z[k] / count;
  });
  each([&](size_t k, size_t channel, size_t group) {
    const double own = weight[channel] * dz[k];
    t.dx[k] = t.deviation[group] * (own - share[group] - z[k] * slope[group]);
    t.dx_terms[k] = t.deviation[group] * (fabs(widen(incoming[k]) * weight[channel]) * t.y_terms[k] +
                                          fabs(share[group]) + (t.y_terms[k] + 1) * fabs(slope[group]) + 1);
  });
  return t;
}

template <class X>
std::vector<float> widened(const std::vector<X>& values) {
  std::vector<float> wide(values.size());
  for (size_t i = 0; i < values.size(); ++i) wide[i] = widen(values[i]);
  return wide;
}

template <class X>
void check_group_norm_silu(const Case& c) {
  const int64_t channels = c.layout.channels, groups = channels % 2 ? channels : channels / 2;
  const auto x = normals<X>(c.count(), 13), incoming = normals<X>(c.count(), 14);
  const auto weight = normals<float>(size_t(channels), 15), bias = normals<float>(size_t(channels), 16);
  const Device<X> x_(x, c.shifted), incoming_(incoming, c.shifted);
  const Device<float> weight_(weight), bias_(bias);
  const size_t of_groups = size_t(c.layout.batch * groups);
  const Device<float> mean = result<float>(of_groups), deviation = result<float>(of_groups);
  const Device<float> by_weight = result<float>(size_t(channels)), by_bias = result<float>(size_t(channels));
  const Device<X> y = result<X>(c.count(), c.shifted), dx = result<X>(c.count(), c.shifted);
  GroupNormProblem p = {};
  p.layout = c.layout;
  p.groups = groups;
  p.eps = 1e-5;
  p.x = x_.data;
  p.weight = weight_.data;
  p.bias = bias_.data;
  p.mean = mean.data;
  p.deviation = deviation.data;
  p.out = y.data;
  p.dtype = dtype<X>;
  const Device<double> partial = scratch<double>(size_t(cuda::group_norm_partials(p)));
  p.partial = partial.data;
  require(cuda::group_norm_silu(p, stream), "group_norm_silu");
  p.incoming = incoming_.data;
  p.out = dx.data;
  p.by_weight = by_weight.data;
  p.by_bias = by_bias.data;
  const Device<double> back = scratch<double>(size_t(cuda::group_norm_partials(p)));
  p.partial = back.data;
  require(cuda::group_norm_silu(p, stream), "the gradient of group_norm_silu");
  if (c.count() == 0) return;
  const NormTruth t = norm_truth(c, groups, p.eps, x, incoming, weight, bias);
  // Some tens of float32 roundings, and that of the result.
  const double rounding = 64 * 0x1p-24 + (sizeof(X) == 2 ? 0x1p-8 : 0);
  expect_close(c, "group_norm_silu", widened(y.values()), t.y, t.y_terms, rounding);
  expect_close(c, "its gradient by x", widened(dx.values()), t.dx, t.dx_terms, rounding);
  expect_close(c, "its gradient by weight", by_weight.values(), t.by_weight, t.weight_terms, 64 * 0x1p-24);
  expect_close(c, "its gradient by bias", by_bias.values(), t.by_bias, t.bias_terms, 64 * 0x1p-24);
}

// Everything in float64, with the magnitudes of what is added, for rows of the case's area.
template <class X>
NormTruth row_truth(int64_t rows, int64_t width, double eps, const std::vector<X>& x,
                    const std::vector<X>& incoming, const std::vector<float>& weight,
                    const std::vector<float>& bias) {
  NormTruth t;
  for (auto* values : {&t.y, &t.dx, &t.y_terms, &t.dx_terms}) values->resize(x.size());
  for (auto* values : {&t.by_weight, &t.by_bias, &t.weight_terms, &t.bias_terms})
    values->resize(size_t(width));
  for (int64_t row = 0; row < rows; ++row) {
    const auto each = [&](auto f) {
      for (int64_t c = 0; c < width; ++c) f(size_t(row * width + c), size_t(c));
    };
    double mean = 0, m2 = 0, share = 0, slope = 0;
    each([&](size_t k, size_t) { mean += widen(x[k]) / double(width); });
    each([&](size_t k, size_t) { m2 += (widen(x[k]) - mean) * (widen(x[k]) - mean); });
    const double deviation = reciprocal_deviation(m2, double(width), eps);
    each([&](size_t k, size_t c) {
      const double z = (widen(x[k]) - mean) * deviation, dz = widen(incoming[k]);
      const double size_of_z = (fabs(widen(x[k])) + fabs(mean)) * deviation;
      t.y[k] = z * weight[c] + bias[c];
      t.y_terms[k] = size_of_z * fabs(weight[c]) + fabs(bias[c]);
      t.by_weight[c] += dz * z;
      t.by_bias[c] += dz;
      t.weight_terms[c] += fabs(dz) * size_of_z;
      t.bias_terms[c] += fabs(dz);
      share += weight[c] * dz / double(width);
      slope += weight[c] * dz * z / double(width);
    });
    each([&](size_t k, size_t c) {
      const double z = (widen(x[k]) - mean) * deviation, own = weight[c] * double(widen(incoming[k]));
      const double size_of_z = (fabs(widen(x[k])) + fabs(mean)) * deviation;
      t.dx[k] = deviation * (own - share - z * slope);
      t.dx_terms[k] = deviation * (fabs(own) + fabs(share) + (size_of_z + 1) * (fabs(slope) + 1));
    });
  }
  return t;
}

template <class X>
void check_layer_norm(const Case& c) {
  if (c.layout.channels_last) return;
  const int64_t rows = c.layout.batch * c.layout.channels, width = c.layout.area;
  const auto x = normals<X>(c.count(), 17), incoming = normals<X>(c.count(), 18);
  const auto weight = normals<float>(size_t(width), 19), bias = normals<float>(size_t(width), 20);
  const Device<X> x_(x, c.shifted), incoming_(incoming, c.shifted);
  const Device<float> weight_(weight), bias_(bias);
  const Device<float> mean = result<float>(size_t(rows)), deviation = result<float>(size_t(rows));
  const Device<float> by_weight = result<float>(size_t(width)), by_bias = result<float>(size_t(width));
  const Device<X> y = result<X>(c.count(), c.shifted), dx = result<X>(c.count(), c.shifted);
  LayerNormProblem p = {};
  p.rows = rows;
  p.width = width;
  p.eps = 1e-5;
  p.x = x_.data;
  p.weight = weight_.data;
  p.bias = bias_.data;
  p.mean = mean.data;
  p.deviation = deviation.data;
  p.out = y.data;
  p.dtype = dtype<X>;
  require(cuda::layer_norm(p, stream), "layer_norm");
  p.incoming = incoming_.data;
  p.out = dx.data;
  p.by_weight = by_weight.data;
  p.by_bias = by_bias.data;
  const Device<double> partial = scratch<double>(size_t(cuda::layer_norm_partials(p)));
  p.partial = partial.data;
  require(cuda::layer_norm(p, stream), "the gradient of layer_norm");
  if (c.count() == 0) return;
  const NormTruth t = row_truth(rows, width, p.eps, x, incoming, weight, bias);
  // Some tens of float32 roundings, and that of the result.
  const double rounding = 64 * 0x1p-24 + (sizeof(X) == 2 ? 0x1p-8 : 0);
  expect_close(c, "layer_norm", widened(y.values()), t.y, t.y_terms, rounding);
  expect_close(c, "its gradient by x", widened(dx.values()), t.dx, t.dx_terms, rounding);
  expect_close(c, "its gradient by weight", by_weight.values(), t.by_weight, t.weight_terms, 64 * 0x1p-24);
  expect_close(c, "its gradient by bias", by_bias.values(), t.by_bias, t.bias_terms, 64 * 0x1p-24);
}

}  // namespace refimpl::standalone
