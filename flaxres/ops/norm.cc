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

// Sums for each group and channel what a norm's statistics are computed from: the values less the
// shift, and their squares.
template <typename Type>
void Moments(ffi::ThreadPool& pool, const Activations& of, const typename Type::Number* x,
             const float* shift, float* sums) {
  const int64_t channels = of.channels;
  ChannelSums(pool, of, sums,
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
}

// Computes a norm from the sums over the `count` pixels of each group. `offset` is the mean less
// the shift.
template <typename Type, Behind kBehind>
void Normalise(ffi::ThreadPool& pool, const Activations& of, const typename Type::Number* x,
               const float* sums, const typename Type::Number* shortcut, const float* shift,
               const float* scale, const float* bias, float epsilon, int64_t count,
               typename Type::Number* y, float* offset, float* variance) {
  const int64_t channels = of.channels;
  std::unique_ptr<float[]> means(new float[of.groups * channels]),
      factors(new float[of.groups * channels]);
  for (int64_t i = 0; i < of.groups * channels; ++i) {
    const int64_t c = i % channels;
    const float* const both = &sums[i / channels * 2 * channels + c];
    offset[i] = both[0] / count;
    variance[i] = std::max(both[channels] / count - offset[i] * offset[i], 0.0f);
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

// Reads the cotangent of a norm's result, less what the ReLU stops, and the input less the mean.
template <typename Type, Behind kBehind>
struct Gate {
  const typename Type::Number *cotangent, *x, *y;
  int64_t channels;
  const float *mean, *bias;
  std::unique_ptr<float[]> factors;  // of each group and channel

  Gate(const Activations& of, const typename Type::Number* cotangent,
       const typename Type::Number* x, const typename Type::Number* y, const float* mean,
       const float* inverse, const float* scale, const float* bias)
      : cotangent(cotangent), x(x), y(y), channels(of.channels), mean(mean), bias(bias),
        factors(new float[of.groups * of.channels]) {
    for (int64_t i = 0; i < of.groups * channels; ++i)
      factors[i] = scale[i % channels] * inverse[i];
  }

  // Calls use(at, change, centred) for the pixels of a tile.
  template <typename Rows, typename Lanes, typename Use>
  void ForEach(int64_t group, int64_t row, Rows rows, int64_t c, Lanes lanes,
               const Use& use) const {
    const int64_t own = group * channels + c;
    const Vector middle = LoadSome(mean + own, lanes), factor = LoadSome(&factors[own], lanes),
                 constant = LoadSome(bias + c, lanes);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t at = (row + r) * channels + c;
      Vector change = Type::LoadNumbers(cotangent + at, lanes);
      const Vector centred = Type::LoadNumbers(x + at, lanes) - middle;
      if constexpr (kBehind == kRelu)
        change = centred * factor + constant > 0.0f ? change : Vector{};
      if constexpr (kBehind == kSumAndRelu)
        change = Type::LoadNumbers(y + at, lanes) > 0.0f ? change : Vector{};
      use(at, change, centred);
    }
  }
};

// Sums for each group and channel what the gradients of `Normalise` are computed from: the
// cotangent, and its products with the input less the mean. The ReLU's gradient is taken where the
// norm is positive, or, behind a sum, where y is; it is then the shortcut's gradient as well.
template <typename Type, Behind kBehind>
void Slopes(ffi::ThreadPool& pool, const Activations& of, const Gate<Type, kBehind>& gate,
            float* sums, typename Type::Number* of_shortcut) {
  ChannelSums(pool, of, sums,
              [&](int64_t group, int64_t row, auto rows, int64_t c, auto lanes, Vector& first,
                  Vector& second) {
                gate.ForEach(group, row, rows, c, lanes,
                             [&](int64_t at, Vector change, Vector centred) {
                               if constexpr (kBehind == kSumAndRelu)
                                 Type::StoreNumbers(of_shortcut + at, change, lanes);
                               first += change;
                               second += change * centred;
                             });
              });
}

// Computes the gradients of `Normalise` from `Slopes`' sums over the `count` pixels of each group.
// Behind a sum, the cotangent is the shortcut's gradient, and nothing is left to stop.
template <typename Type, Behind kBehind>
void NormGradient(ffi::ThreadPool& pool, const Activations& of, const Gate<Type, kBehind>& gate,
                  const float* sums, const float* inverse, int64_t count,
                  typename Type::Number* of_x, float* of_scale, float* of_bias) {
  const int64_t channels = of.channels;
  std::unique_ptr<float[]> slopes(new float[of.groups * channels]),
      constants(new float[of.groups * channels]);
  for (int64_t i = 0; i < of.groups * channels; ++i) {
    const float* const both = &sums[i / channels * 2 * channels + i % channels];
    of_bias[i] = both[0];
    of_scale[i] = both[channels] * inverse[i];
    slopes[i] = gate.factors[i] * inverse[i] * of_scale[i] / count;
    constants[i] = gate.factors[i] * of_bias[i] / count;
  }
  ForAll(pool, of, [&](int64_t group, int64_t row, auto rows, int64_t c, auto lanes) {
    const int64_t own = group * channels + c;
    const Vector factor = LoadSome(&gate.factors[own], lanes),
                 slope = LoadSome(&slopes[own], lanes), less = LoadSome(&constants[own], lanes);
    gate.ForEach(group, row, rows, c, lanes, [&](int64_t at, Vector change, Vector centred) {
      Type::StoreNumbers(of_x + at, change * factor - centred * slope - less, lanes);
    });
  });
}

template <ffi::DataType kDataType>
using Array = ffi::Buffer<kDataType>;
template <ffi::DataType kDataType>
using Result = ffi::ResultBuffer<kDataType>;
using Floats = ffi::Buffer<ffi::F32>;
using FloatsResult = ffi::ResultBuffer<ffi::F32>;

template <typename Type, ffi::DataType kDataType>
ffi::Error NormMoments(ffi::ThreadPool pool, Array<kDataType> x, Floats shift,
                       FloatsResult sums) {
  const Activations of(x.dimensions());
  return Guarded([&] {
    Moments<Type>(pool, of, x.typed_data(), shift.typed_data(), sums->typed_data());
  });
}

// The last operand is added before the ReLU with `added`, and unused without.
template <typename Type, ffi::DataType kDataType>
ffi::Error Norm(ffi::ThreadPool pool, Array<kDataType> x, Floats sums, Floats shift, Floats scale,
                Floats bias, Array<kDataType> shortcut, Result<kDataType> y, FloatsResult offset,
                FloatsResult variance, float epsilon, bool relu, bool added, int64_t count) {
  const Activations of(x.dimensions());
  return Guarded([&] {
    const auto run = added  ? Normalise<Type, kSumAndRelu>
                     : relu ? Normalise<Type, kRelu>
                            : Normalise<Type, kNothing>;
    run(pool, of, x.typed_data(), sums.typed_data(), shortcut.typed_data(), shift.typed_data(),
        scale.typed_data(), bias.typed_data(), epsilon, count, y->typed_data(),
        offset->typed_data(), variance->typed_data());
  });
}

// Calls use(gate) with the gate of a norm that has a ReLU behind it or not.
template <typename Type, ffi::DataType kDataType, typename Use>
void WithGate(const Activations& of, bool relu, Array<kDataType> cotangent, Array<kDataType> x,
              Floats mean, Floats inverse, Floats scale, Floats bias, const Use& use) {
  const auto with = [&](auto behind) {
    use(Gate<Type, decltype(behind)::value>(
        of, cotangent.typed_data(), x.typed_data(), nullptr, mean.typed_data(),
        inverse.typed_data(), scale.typed_data(), bias.typed_data()));
  };
  if (relu) {
    with(std::integral_constant<Behind, kRelu>());
  } else {
    with(std::integral_constant<Behind, kNothing>());
  }
}

template <typename Type, ffi::DataType kDataType>
ffi::Error NormSlopes(ffi::ThreadPool pool, Array<kDataType> cotangent, Array<kDataType> x,
                      Floats mean, Floats inverse, Floats scale, Floats bias, FloatsResult sums,
                      bool relu) {
  const Activations of(x.dimensions());
  return Guarded([&] {
    WithGate<Type, kDataType>(of, relu, cotangent, x, mean, inverse, scale, bias,
                              [&](const auto& gate) {
                                Slopes(pool, of, gate, sums->typed_data(), nullptr);
                              });
  });
}

template <typename Type, ffi::DataType kDataType>
ffi::Error NormSumSlopes(ffi::ThreadPool pool, Array<kDataType> cotangent, Array<kDataType> x,
                         Floats mean, Floats inverse, Floats scale, Floats bias,
                         Array<kDataType> y, FloatsResult sums, Result<kDataType> of_shortcut) {
  const Activations of(x.dimensions());
  return Guarded([&] {
    const Gate<Type, kSumAndRelu> gate(of, cotangent.typed_data(), x.typed_data(), y.typed_data(),
                                       mean.typed_data(), inverse.typed_data(),
                                       scale.typed_data(), bias.typed_data());
    Slopes(pool, of, gate, sums->typed_data(), of_shortcut->typed_data());
  });
}

template <typename Type, ffi::DataType kDataType>
ffi::Error Gradient(ffi::ThreadPool pool, Array<kDataType> cotangent, Array<kDataType> x,
                    Floats mean, Floats inverse, Floats scale, Floats bias, Floats sums,
                    Result<kDataType> of_x, FloatsResult of_scale, FloatsResult of_bias, bool relu,
                    int64_t count) {
  const Activations of(x.dimensions());
  return Guarded([&] {
    WithGate<Type, kDataType>(of, relu, cotangent, x, mean, inverse, scale, bias,
                              [&](const auto& gate) {
                                NormGradient(pool, of, gate, sums.typed_data(),
                                             inverse.typed_data(), count, of_x->typed_data(),
                                             of_scale->typed_data(), of_bias->typed_data());
                              });
  });
}

template <ffi::DataType kDataType>
auto MomentsCall() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<Array<kDataType>>()
      .template Arg<Floats>()
      .template Ret<Floats>();
}

template <ffi::DataType kDataType>
auto NormCall() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<Array<kDataType>>()
      .template Arg<Floats>()
      .template Arg<Floats>()
      .template Arg<Floats>()
      .template Arg<Floats>()
      .template Arg<Array<kDataType>>()
      .template Ret<Array<kDataType>>()
      .template Ret<Floats>()
      .template Ret<Floats>()
      .template Attr<float>("epsilon")
      .template Attr<bool>("relu")
      .template Attr<bool>("added")
      .template Attr<int64_t>("count");
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
auto SlopesCall() {
  return GradientOperands<kDataType>().template Ret<Floats>().template Attr<bool>("relu");
}

template <ffi::DataType kDataType>
auto SumSlopesCall() {
  return GradientOperands<kDataType>()
      .template Arg<Array<kDataType>>()
      .template Ret<Floats>()
      .template Ret<Array<kDataType>>();
}

template <ffi::DataType kDataType>
auto GradientCall() {
  return GradientOperands<kDataType>()
      .template Arg<Floats>()
      .template Ret<Array<kDataType>>()
      .template Ret<Floats>()
      .template Ret<Floats>()
      .template Attr<bool>("relu")
      .template Attr<int64_t>("count");
}

}  // namespace
}  // namespace flaxres

#if defined(FLAXRES_FLOAT32)
XLA_FFI_DEFINE_HANDLER_SYMBOL(flaxres_norm_moments_float32,
                              (flaxres::NormMoments<flaxres::Float32, xla::ffi::F32>),
                              flaxres::MomentsCall<xla::ffi::F32>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(flaxres_norm_float32,
                              (flaxres::Norm<flaxres::Float32, xla::ffi::F32>),
                              flaxres::NormCall<xla::ffi::F32>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(flaxres_norm_slopes_float32,
                              (flaxres::NormSlopes<flaxres::Float32, xla::ffi::F32>),
                              flaxres::SlopesCall<xla::ffi::F32>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(flaxres_norm_sum_slopes_float32,
                              (flaxres::NormSumSlopes<flaxres::Float32, xla::ffi::F32>),
                              flaxres::SumSlopesCall<xla::ffi::F32>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(flaxres_norm_gradient_float32,
                              (flaxres::Gradient<flaxres::Float32, xla::ffi::F32>),
                              flaxres::GradientCall<xla::ffi::F32>());
#elif defined(FLAXRES_BFLOAT16) && defined(__AVX512BF16__)
XLA_FFI_DEFINE_HANDLER_SYMBOL(flaxres_norm_moments_bfloat16,
                              (flaxres::NormMoments<flaxres::BFloat16, xla::ffi::BF16>),
                              flaxres::MomentsCall<xla::ffi::BF16>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(flaxres_norm_bfloat16,
                              (flaxres::Norm<flaxres::BFloat16, xla::ffi::BF16>),
                              flaxres::NormCall<xla::ffi::BF16>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(flaxres_norm_slopes_bfloat16,
                              (flaxres::NormSlopes<flaxres::BFloat16, xla::ffi::BF16>),
                              flaxres::SlopesCall<xla::ffi::BF16>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(flaxres_norm_sum_slopes_bfloat16,
                              (flaxres::NormSumSlopes<flaxres::BFloat16, xla::ffi::BF16>),
                              flaxres::SumSlopesCall<xla::ffi::BF16>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(flaxres_norm_gradient_bfloat16,
                              (flaxres::Gradient<flaxres::BFloat16, xla::ffi::BF16>),
                              flaxres::GradientCall<xla::ffi::BF16>());
#endif
