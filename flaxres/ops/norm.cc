// Batch normalisation for XLA's CPU client, with a ReLU or a sum and a ReLU behind it, and its
// gradient. Statistics and arithmetic are float32; arrays are float32, or bfloat16 where the
// processor rounds to it (AVX512_BF16).
//
// The forward pass reads the activation twice and the gradient reads it and the cotangent twice:
// once for the sums of a channel, once for the result. The order of all sums depends on the shapes
// alone.

#include <cmath>

#include "native.h"

namespace flaxres {
namespace {

// Pixels that are summed or computed at once for each vector of channels.
constexpr int64_t kRows = 8;
// Numbers of a part, which one thread processes: they stay in its second-level cache.
constexpr int64_t kPart = 1 << 15;

// Activations of groups of images that share statistics.
struct Activations {
  int64_t groups, pixels, channels;

  explicit Activations(ffi::Span<const int64_t> shape)
      : groups(shape[0]), pixels(shape[1] * shape[2] * shape[3]), channels(shape[4]) {}
  int64_t parts() const { return std::min(pixels, Quotient(pixels * channels, kPart)); }
  int64_t size() const { return groups * pixels * channels; }
};

// Calls tile(first, rows, channel, lanes) for all tiles of a part of a group. `first` counts the
// pixels of all groups. Whole tiles get constants as `rows` and `lanes`.
template <typename Tile>
void Tiles(const Activations& of, int64_t group, int64_t part, const Tile& tile) {
  const std::integral_constant<int64_t, kRows> all_rows;
  const std::integral_constant<int64_t, kLanes> all_lanes;
  const int64_t parts = of.parts(), offset = group * of.pixels,
                end = offset + (part + 1) * of.pixels / parts;
  for (int64_t row = offset + part * of.pixels / parts; row < end; row += kRows) {
    for (int64_t c = 0; c < of.channels; c += kLanes) {
      if (end - row >= kRows && of.channels - c >= kLanes) {
        tile(row, all_rows, c, all_lanes);
      } else {
        tile(row, std::min(kRows, end - row), c, std::min<int64_t>(kLanes, of.channels - c));
      }
    }
  }
}

// Computes two sums for each group and channel, (groups, 2, channels). add(group, row, rows,
// channel, lanes, first, second) adds those of a tile.
template <typename Add>
void ChannelSums(ffi::ThreadPool& pool, const Activations& of, float* sums, const Add& add) {
  const int64_t parts = of.parts(), size = 2 * of.channels;
  std::unique_ptr<float[]> partial(new float[of.groups * parts * size]());
  Parallel(pool, of.groups * parts, [&](int64_t index) {
    float* const to = &partial[index * size];
    const int64_t group = index / parts;
    Tiles(of, group, index % parts, [&](int64_t row, auto rows, int64_t c, auto lanes) {
      Vector first = {}, second = {};
      add(group, row, rows, c, lanes, first, second);
      StoreSome(to + c, LoadSome(to + c, lanes) + first, lanes);
      float* const other = to + of.channels + c;
      StoreSome(other, LoadSome(other, lanes) + second, lanes);
    });
  });
  constexpr int64_t kPiece = 256;
  const int64_t pieces = Quotient(size, kPiece);
  Parallel(pool, of.groups * pieces, [&](int64_t index) {
    const int64_t group = index / pieces, first = index % pieces * kPiece;
    const int64_t count = std::min(kPiece, size - first);
    double totals[kPiece] = {};
    for (int64_t part = 0; part < parts; ++part) {
      const float* const from = &partial[(group * parts + part) * size + first];
      for (int64_t i = 0; i < count; ++i) totals[i] += from[i];
    }
    for (int64_t i = 0; i < count; ++i) sums[group * size + first + i] = totals[i];
  });
}

// Calls tile(group, row, rows, channel, lanes) for all tiles.
template <typename Tile>
void ForAll(ffi::ThreadPool& pool, const Activations& of, const Tile& tile) {
  const int64_t parts = of.parts();
  Parallel(pool, of.groups * parts, [&](int64_t index) {
    Tiles(of, index / parts, index % parts, [&](int64_t row, auto rows, int64_t c, auto lanes) {
      tile(index / parts, row, rows, c, lanes);
    });
  });
}

// Keeps NaN.
inline Vector Positive(Vector x) { return x <= 0.0f ? Vector{} : x; }

// What follows the norm.
enum Behind { kNothing, kRelu, kSumAndRelu };

// Computes a norm by the statistics of each group. `offset` is the mean less the shift.
template <typename Type, Behind kBehind>
void Normalise(ffi::ThreadPool& pool, const Activations& of, const typename Type::Number* x,
               const typename Type::Number* shortcut, const float* shift, const float* scale,
               const float* bias, float epsilon, typename Type::Number* y, float* offset,
               float* variance) {
  const int64_t channels = of.channels;
  std::unique_ptr<float[]> sums(new float[of.groups * 2 * channels]);
  ChannelSums(pool, of, sums.get(),
              [&](int64_t, int64_t row, auto rows, int64_t c, auto lanes, Vector& first,
                  Vector& second) {
                const Vector from = LoadSome(shift + c, lanes);
                for (int64_t r = 0; r < rows; ++r) {
                  const int64_t at = (row + r) * channels + c;
                  const Vector value = Type::LoadNumbers(x + at, lanes) - from;
                  first += value;
                  second += value * value;
                }
              });
  std::unique_ptr<float[]> means(new float[of.groups * channels]),
      factors(new float[of.groups * channels]);
  for (int64_t i = 0; i < of.groups * channels; ++i) {
    const int64_t c = i % channels;
    const float* const both = &sums[i / channels * 2 * channels + c];
    offset[i] = both[0] / of.pixels;
    variance[i] = std::max(both[channels] / of.pixels - offset[i] * offset[i], 0.0f);
    means[i] = shift[c] + offset[i];
    factors[i] = scale[c] / std::sqrt(variance[i] + epsilon);
  }
  ForAll(pool, of, [&](int64_t group, int64_t row, auto rows, int64_t c, auto lanes) {
    const Vector mean = LoadSome(&means[group * channels + c], lanes),
                 factor = LoadSome(&factors[group * channels + c], lanes),
                 constant = LoadSome(bias + c, lanes);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t at = (row + r) * channels + c;
      Vector value = (Type::LoadNumbers(x + at, lanes) - mean) * factor + constant;
      if constexpr (kBehind == kSumAndRelu) value += Type::LoadNumbers(shortcut + at, lanes);
      if constexpr (kBehind != kNothing) value = Positive(value);
      Type::StoreNumbers(y + at, value, lanes);
    }
  });
}

// Computes the gradients of `Normalise`. The ReLU's is taken where the norm is positive, or, behind
// a sum, where y is; it is then the shortcut's gradient as well.
template <typename Type, Behind kBehind>
void NormGradient(ffi::ThreadPool& pool, const Activations& of,
                  const typename Type::Number* cotangent, const typename Type::Number* x,
                  const typename Type::Number* y, const float* mean, const float* inverse,
                  const float* scale, const float* bias, typename Type::Number* of_x,
                  float* of_scale, float* of_bias, typename Type::Number* of_shortcut) {
  const int64_t channels = of.channels;
  std::unique_ptr<float[]> sums(new float[of.groups * 2 * channels]),
      factors(new float[of.groups * channels]);
  for (int64_t i = 0; i < of.groups * channels; ++i) factors[i] = scale[i % channels] * inverse[i];
  // Returns the cotangent of the norm, and sets its input less the mean.
  auto gated = [&](int64_t at, auto lanes, Vector middle, Vector factor, Vector constant,
                   Vector& centred) {
    const Vector change = Type::LoadNumbers(cotangent + at, lanes);
    centred = Type::LoadNumbers(x + at, lanes) - middle;
    if constexpr (kBehind == kRelu) return centred * factor + constant > 0.0f ? change : Vector{};
    if constexpr (kBehind == kSumAndRelu)
      return Type::LoadNumbers(y + at, lanes) > 0.0f ? change : Vector{};
    return change;
  };
  ChannelSums(pool, of, sums.get(),
              [&](int64_t group, int64_t row, auto rows, int64_t c, auto lanes, Vector& first,
                  Vector& second) {
                const int64_t own = group * channels + c;
                const Vector middle = LoadSome(mean + own, lanes),
                             factor = LoadSome(&factors[own], lanes),
                             constant = LoadSome(bias + c, lanes);
                for (int64_t r = 0; r < rows; ++r) {
                  const int64_t at = (row + r) * channels + c;
                  Vector centred;
                  const Vector change = gated(at, lanes, middle, factor, constant, centred);
                  if constexpr (kBehind == kSumAndRelu)
                    Type::StoreNumbers(of_shortcut + at, change, lanes);
                  first += change;
                  second += change * centred;
                }
              });
  std::unique_ptr<float[]> slopes(new float[of.groups * channels]),
      constants(new float[of.groups * channels]);
  for (int64_t i = 0; i < of.groups * channels; ++i) {
    const float* const both = &sums[i / channels * 2 * channels + i % channels];
    of_bias[i] = both[0];
    of_scale[i] = both[channels] * inverse[i];
    slopes[i] = factors[i] * inverse[i] * of_scale[i] / of.pixels;
    constants[i] = factors[i] * of_bias[i] / of.pixels;
  }
  ForAll(pool, of, [&](int64_t group, int64_t row, auto rows, int64_t c, auto lanes) {
    const int64_t own = group * channels + c;
    const Vector middle = LoadSome(mean + own, lanes), factor = LoadSome(&factors[own], lanes),
                 constant = LoadSome(bias + c, lanes), slope = LoadSome(&slopes[own], lanes),
                 less = LoadSome(&constants[own], lanes);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t at = (row + r) * channels + c;
      Vector centred, change;
      if constexpr (kBehind == kSumAndRelu) {
        change = Type::LoadNumbers(of_shortcut + at, lanes);
        centred = Type::LoadNumbers(x + at, lanes) - middle;
      } else {
        change = gated(at, lanes, middle, factor, constant, centred);
      }
      Type::StoreNumbers(of_x + at, change * factor - centred * slope - less, lanes);
    }
  });
}

template <ffi::DataType kDataType>
using Array = ffi::Buffer<kDataType>;
template <ffi::DataType kDataType>
using Result = ffi::ResultBuffer<kDataType>;
using Floats = ffi::Buffer<ffi::F32>;
using FloatsResult = ffi::ResultBuffer<ffi::F32>;

// The last operand is added before the ReLU with `added`, and unused without.
template <typename Type, ffi::DataType kDataType>
ffi::Error Norm(ffi::ThreadPool pool, Array<kDataType> x, Floats shift, Floats scale, Floats bias,
                Array<kDataType> shortcut, Result<kDataType> y, FloatsResult offset,
                FloatsResult variance, float epsilon, bool relu, bool added) {
  const Activations of(x.dimensions());
  return Guarded([&] {
    const auto run = added  ? Normalise<Type, kSumAndRelu>
                     : relu ? Normalise<Type, kRelu>
                            : Normalise<Type, kNothing>;
    run(pool, of, x.typed_data(), shortcut.typed_data(), shift.typed_data(), scale.typed_data(),
        bias.typed_data(), epsilon, y->typed_data(), offset->typed_data(), variance->typed_data());
  });
}

template <typename Type, ffi::DataType kDataType>
ffi::Error Gradient(ffi::ThreadPool pool, Array<kDataType> cotangent, Array<kDataType> x,
                    Floats mean, Floats inverse, Floats scale, Floats bias, Result<kDataType> of_x,
                    FloatsResult of_scale, FloatsResult of_bias, bool relu) {
  const Activations of(x.dimensions());
  return Guarded([&] {
    const auto run = relu ? NormGradient<Type, kRelu> : NormGradient<Type, kNothing>;
    run(pool, of, cotangent.typed_data(), x.typed_data(), nullptr, mean.typed_data(),
        inverse.typed_data(), scale.typed_data(), bias.typed_data(), of_x->typed_data(),
        of_scale->typed_data(), of_bias->typed_data(), nullptr);
  });
}

template <typename Type, ffi::DataType kDataType>
ffi::Error SumGradient(ffi::ThreadPool pool, Array<kDataType> cotangent, Array<kDataType> x,
                       Floats mean, Floats inverse, Floats scale, Floats bias, Array<kDataType> y,
                       Result<kDataType> of_x, FloatsResult of_scale, FloatsResult of_bias,
                       Result<kDataType> of_shortcut) {
  const Activations of(x.dimensions());
  return Guarded([&] {
    NormGradient<Type, kSumAndRelu>(
        pool, of, cotangent.typed_data(), x.typed_data(), y.typed_data(), mean.typed_data(),
        inverse.typed_data(), scale.typed_data(), bias.typed_data(), of_x->typed_data(),
        of_scale->typed_data(), of_bias->typed_data(), of_shortcut->typed_data());
  });
}

template <ffi::DataType kDataType>
auto NormCall() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<Array<kDataType>>()
      .template Arg<Floats>()
      .template Arg<Floats>()
      .template Arg<Floats>()
      .template Arg<Array<kDataType>>()
      .template Ret<Array<kDataType>>()
      .template Ret<Floats>()
      .template Ret<Floats>()
      .template Attr<float>("epsilon")
      .template Attr<bool>("relu")
      .template Attr<bool>("added");
}

template <ffi::DataType kDataType>
auto GradientOperands() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<Array<kDataType>>()
      .template Arg<Array<kDataType>>()
      .template Arg<Floats>()
      .template Arg<Floats>()
      .template Arg<Floats>()
      .template Arg<Floats>();
}

template <ffi::DataType kDataType>
auto GradientCall() {
  return GradientOperands<kDataType>()
      .template Ret<Array<kDataType>>()
      .template Ret<Floats>()
      .template Ret<Floats>()
      .template Attr<bool>("relu");
}

template <ffi::DataType kDataType>
auto SumGradientCall() {
  return GradientOperands<kDataType>()
      .template Arg<Array<kDataType>>()
      .template Ret<Array<kDataType>>()
      .template Ret<Floats>()
      .template Ret<Floats>()
      .template Ret<Array<kDataType>>();
}

}  // namespace
}  // namespace flaxres

#if defined(FLAXRES_FLOAT32)
XLA_FFI_DEFINE_HANDLER_SYMBOL(flaxres_norm_float32,
                              (flaxres::Norm<flaxres::Float32, xla::ffi::F32>),
                              flaxres::NormCall<xla::ffi::F32>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(flaxres_norm_gradient_float32,
                              (flaxres::Gradient<flaxres::Float32, xla::ffi::F32>),
                              flaxres::GradientCall<xla::ffi::F32>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(flaxres_norm_sum_gradient_float32,
                              (flaxres::SumGradient<flaxres::Float32, xla::ffi::F32>),
                              flaxres::SumGradientCall<xla::ffi::F32>());
#elif defined(FLAXRES_BFLOAT16) && defined(__AVX512BF16__)
XLA_FFI_DEFINE_HANDLER_SYMBOL(flaxres_norm_bfloat16,
                              (flaxres::Norm<flaxres::BFloat16, xla::ffi::BF16>),
                              flaxres::NormCall<xla::ffi::BF16>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(flaxres_norm_gradient_bfloat16,
                              (flaxres::Gradient<flaxres::BFloat16, xla::ffi::BF16>),
                              flaxres::GradientCall<xla::ffi::BF16>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(flaxres_norm_sum_gradient_bfloat16,
                              (flaxres::SumGradient<flaxres::BFloat16, xla::ffi::BF16>),
                              flaxres::SumGradientCall<xla::ffi::BF16>());
#endif
