// The launchers of csrc/*.cu, compiled for the CPU, behind functions that
// ctypes can call.
#include "launch.h"

using namespace refimpl;

namespace {

PerSample doubles(const double *values) { return {values, 1, true}; }

} // namespace

extern "C" int emulated_noise(const int64_t *sizes, int last, int dtype,
                              const void *x0, const void *eps,
                              const int64_t *key, double offset,
                              const double *alpha, const double *sigma,
                              void *out) {
  NoiseProblem p = {};
  p.layout = {sizes[0], sizes[1], sizes[2], last != 0};
  p.x0 = x0;
  p.noise = {eps, key, float(offset)};
  p.alpha = doubles(alpha);
  p.sigma = doubles(sigma);
  p.out = out;
  p.dtype = DType(dtype);
  return cuda::noise(p, nullptr);
}

extern "C" int emulated_loss(const int64_t *sizes, int last,
                             int prediction_dtype, int latent_dtype,
                             const void *prediction, const void *x0,
                             const void *eps, const int64_t *key, double offset,
                             const double *alpha, const double *sigma,
                             const double *weight, const double *incoming,
                             double expected, int only_unexpected, float *loss,
                             void *grad) {
  LossProblem p = {};
  p.layout = {sizes[0], sizes[1], sizes[2], last != 0};
  p.prediction = prediction;
  p.x0 = x0;
  p.noise = {eps, key, float(offset)};
  p.alpha = doubles(alpha);
  p.sigma = doubles(sigma);
  p.weight = doubles(weight);
  if (incoming)
    p.incoming = doubles(incoming);
  p.expected = expected;
  p.only_unexpected = only_unexpected != 0;
  p.loss = loss;
  p.grad = grad;
  p.prediction_dtype = DType(prediction_dtype);
  p.latent_dtype = DType(latent_dtype);
  std::vector<float> partial(size_t(cuda::loss_partials(p)));
  p.partial = partial.data();
  return cuda::loss(p, nullptr);
}

extern "C" int emulated_geglu(int64_t rows, int64_t width, int dtype,
                              const void *packed, const void *incoming,
                              void *out) {
  return cuda::geglu({rows, width, packed, incoming, out, DType(dtype)},
                     nullptr);
}

extern "C" int emulated_group_norm(const int64_t *sizes, int last, int dtype,
                                   int64_t groups, double eps, const void *x,
                                   const float *weight, const float *bias,
                                   float *mean, float *deviation,
                                   const void *incoming, void *out,
                                   float *by_weight, float *by_bias) {
  GroupNormProblem p = {};
  p.layout = {sizes[0], sizes[1], sizes[2], last != 0};
  p.groups = groups;
  p.eps = eps;
  p.x = x;
  p.weight = weight;
  p.bias = bias;
  p.mean = mean;
  p.deviation = deviation;
  p.incoming = incoming;
  p.out = out;
  p.by_weight = by_weight;
  p.by_bias = by_bias;
  p.dtype = DType(dtype);
  std::vector<double> partial(size_t(cuda::group_norm_partials(p)));
  p.partial = partial.data();
  return cuda::group_norm_silu(p, nullptr);
}

extern "C" int emulated_layer_norm(int64_t rows, int64_t width, int dtype,
                                   double eps, const void *x,
                                   const float *weight, const float *bias,
                                   float *mean, float *deviation,
                                   const void *incoming, void *out,
                                   float *by_weight, float *by_bias) {
  LayerNormProblem p = {};
  p.rows = rows;
  p.width = width;
  p.eps = eps;
  p.x = x;
  p.weight = weight;
  p.bias = bias;
  p.mean = mean;
  p.deviation = deviation;
  p.incoming = incoming;
  p.out = out;
  p.by_weight = by_weight;
  p.by_bias = by_bias;
  p.dtype = DType(dtype);
  std::vector<double> partial(size_t(cuda::layer_norm_partials(p)), NAN);
  p.partial = partial.data();
  return cuda::layer_norm(p, nullptr);
}

extern "C" int emulated_moments(const int64_t *sizes, int last, int dtype,
                                const void *x, double *count, double *mean,
                                double *m2) {
  MomentsProblem p = {};
  p.layout = {sizes[0], sizes[1], sizes[2], last != 0};
  p.x = x;
  p.count = count;
  p.mean = mean;
  p.m2 = m2;
  p.dtype = DType(dtype);
  std::vector<Moments> partial(size_t(cuda::moments_partials(p)));
  p.partial = partial.data();
  return cuda::moments(p, nullptr);
}
