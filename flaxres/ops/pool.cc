// Max pooling for XLA's CPU client, with the place of each maximum, and the gradient by places.

#include <limits>

#include "native.h"

namespace flaxres {
namespace {

using Integers = int32_t __attribute__((vector_size(4 * kLanes)));
using Bytes = uint8_t __attribute__((vector_size(kLanes)));

inline void StorePlaces(uint8_t* to, Integers places, int64_t count) {
  const Bytes bytes = __builtin_convertvector(places, Bytes);
  std::memcpy(to, &bytes, std::min<int64_t>(count, kLanes));
}
inline Integers LoadPlaces(const uint8_t* from, int64_t count) {
  Bytes bytes = {};
  std::memcpy(&bytes, from, std::min<int64_t>(count, kLanes));
  return __builtin_convertvector(bytes, Integers);
}

// Calls compute(image, row) for all rows of an array (images, rows, columns, channels).
template <typename Compute>
void Rows(ffi::ThreadPool& pool, ffi::Span<const int64_t> shape, const Compute& compute) {
  Parallel(pool, shape[0] * shape[1],
           [&](int64_t index) { compute(index / shape[1], index % shape[1]); });
}

// Calls compute(channel, lanes) for each vector of channels; whole ones get a constant.
template <typename Compute>
inline void Vectors(int64_t channels, const Compute& compute) {
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes)
    compute(c, std::integral_constant<int64_t, kLanes>());
  if (c < channels) compute(c, channels - c);
}

// The first maximum of each window in row-major order; a NaN counts as the largest. The place of
// pixel (a, b) of a window is size * a + b.
template <typename Type, ffi::DataType kDataType>
ffi::Error Pool(ffi::ThreadPool pool, ffi::Buffer<kDataType> x, ffi::ResultBuffer<kDataType> best,
                ffi::ResultBuffer<ffi::U8> place, int64_t size, int64_t stride, int64_t padding) {
  const auto in = x.dimensions(), out = best->dimensions();
  const int64_t height = in[1], width = in[2], channels = in[3], columns = out[2];
  return Guarded([&] {
    Rows(pool, out, [&](int64_t n, int64_t i) {
      for (int64_t j = 0; j < columns; ++j) {
        const int64_t top = i * stride - padding, left = j * stride - padding;
        const int64_t at = ((n * out[1] + i) * columns + j) * channels;
        const int64_t a_begin = std::max<int64_t>(0, -top), a_end = std::min(size, height - top),
                      b_begin = std::max<int64_t>(0, -left), b_end = std::min(size, width - left);
        Vectors(channels, [&](int64_t c, auto lanes) {
          Vector largest = Vector{} - std::numeric_limits<float>::infinity();
          Integers places = Integers{} + static_cast<int32_t>(size * a_begin + b_begin);
          for (int64_t a = a_begin; a < a_end; ++a) {
            for (int64_t b = b_begin; b < b_end; ++b) {
              const int64_t pixel = (n * height + top + a) * width + left + b;
              const Vector value =
                  Type::LoadNumbers(x.typed_data() + pixel * channels + c, lanes);
              const Integers better =
                  (value > largest) | ((value != value) & (largest == largest));
              largest = better ? value : largest;
              places = better ? Integers{} + static_cast<int32_t>(size * a + b) : places;
            }
          }
          Type::StoreNumbers(best->typed_data() + at + c, largest, lanes);
          StorePlaces(place->typed_data() + at + c, places, lanes);
        });
      }
    });
  });
}

// Gives the value of each window to the pixel at its place; a pixel sums those that it gets.
template <typename Type, ffi::DataType kDataType>
ffi::Error Spread(ffi::ThreadPool pool, ffi::Buffer<kDataType> y, ffi::Buffer<ffi::U8> place,
                  ffi::ResultBuffer<kDataType> x, int64_t size, int64_t stride, int64_t padding) {
  const auto in = y.dimensions(), out = x->dimensions();
  const int64_t rows = in[1], columns = in[2], channels = in[3], width = out[2];
  return Guarded([&] {
    Rows(pool, out, [&](int64_t n, int64_t top) {
      const int64_t down = top + padding;
      const int64_t i_begin = std::max<int64_t>(0, Quotient(down - size + 1, stride)),
                    i_end = std::min(rows, down / stride + 1);
      for (int64_t left = 0; left < width; ++left) {
        const int64_t right = left + padding;
        const int64_t j_begin = std::max<int64_t>(0, Quotient(right - size + 1, stride)),
                      j_end = std::min(columns, right / stride + 1);
        Vectors(channels, [&](int64_t c, auto lanes) {
          Vector sum = {};
          for (int64_t i = i_begin; i < i_end; ++i) {
            for (int64_t j = j_begin; j < j_end; ++j) {
              const int64_t at = ((n * rows + i) * columns + j) * channels + c;
              const int64_t own = size * (down - i * stride) + right - j * stride;
              const Integers here =
                  LoadPlaces(place.typed_data() + at, lanes) == static_cast<int32_t>(own);
              const Vector value = Type::LoadNumbers(y.typed_data() + at, lanes);
              sum += here ? value : Vector{};
            }
          }
          Type::StoreNumbers(
              x->typed_data() + ((n * out[1] + top) * width + left) * channels + c, sum, lanes);
        });
      }
    });
  });
}

template <ffi::DataType kDataType>
auto PoolCall() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<ffi::Buffer<kDataType>>()
      .template Ret<ffi::Buffer<kDataType>>()
      .template Ret<ffi::Buffer<ffi::U8>>()
      .template Attr<int64_t>("size")
      .template Attr<int64_t>("stride")
      .template Attr<int64_t>("padding");
}

template <ffi::DataType kDataType>
auto SpreadCall() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<ffi::Buffer<kDataType>>()
      .template Arg<ffi::Buffer<ffi::U8>>()
      .template Ret<ffi::Buffer<kDataType>>()
      .template Attr<int64_t>("size")
      .template Attr<int64_t>("stride")
      .template Attr<int64_t>("padding");
}

}  // namespace
}  // namespace flaxres

#if defined(FLAXRES_FLOAT32)
XLA_FFI_DEFINE_HANDLER_SYMBOL(flaxres_pool_float32,
                              (flaxres::Pool<flaxres::Float32, xla::ffi::F32>),
                              flaxres::PoolCall<xla::ffi::F32>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(flaxres_spread_float32,
                              (flaxres::Spread<flaxres::Float32, xla::ffi::F32>),
                              flaxres::SpreadCall<xla::ffi::F32>());
#elif defined(FLAXRES_BFLOAT16) && defined(__AVX512BF16__)
XLA_FFI_DEFINE_HANDLER_SYMBOL(flaxres_pool_bfloat16,
                              (flaxres::Pool<flaxres::BFloat16, xla::ffi::BF16>),
                              flaxres::PoolCall<xla::ffi::BF16>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(flaxres_spread_bfloat16,
                              (flaxres::Spread<flaxres::BFloat16, xla::ffi::BF16>),
                              flaxres::SpreadCall<xla::ffi::BF16>());
#endif
