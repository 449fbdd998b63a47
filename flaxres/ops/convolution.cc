// Convolutions of NHWC images for XLA's CPU client, and the gradients of their kernels: in float32,
// and in bfloat16 with sums in float32 where the processor multiplies bfloat16 (AVX512_BF16).
//
// XLA calls the handlers at the end of this file with its own buffers and threads. The order of all
// sums depends on the shapes alone. The number of threads and the division of work among them
// change no bit of the result.

#include "outputs.h"

namespace flaxres {
namespace {

// For kernels of more than kLargeKernel floats, threads divide the sums of a gradient in place of
// the images. About kSegment pixels are summed at a time.
constexpr int64_t kLargeKernel = 1 << 16, kSegment = 2048;

// Copies every `step`-th pixel of padded rows in blocks of B channels. A word pairs the same number
// of kPair images; `images` of them exist, the others are zero. Each block is a plane of `plane`
// pixels, and the copy starts at pixel `pixel` of the plane. The remaining channels form a last
// block, padded by zeros to `last` channels. `zeros` has as many numbers as there are channels.
template <typename Type, int B>
void CopyBlocks(const typename Type::Number* image, int64_t images, const Images& of, int64_t first,
                int64_t rows, int64_t pad, int64_t step, int64_t plane, int64_t pixel, int64_t last,
                const typename Type::Number* zeros, typename Type::Word* to) {
  using Word = typename Type::Word;
  const int64_t whole = of.channels / B * B, rest = of.channels - whole;
  for (int64_t y = first; y < first + step * rows; y += step) {
    for (int64_t x = -pad; x < of.width + pad; x += step, ++pixel) {
      const bool inside = 0 <= y && y < of.height && 0 <= x && x < of.width;
      const auto* one = inside ? image + (y * of.width + x) * of.channels : zeros;
      const auto* other = inside && images > 1 ? one + of.image() : zeros;
      for (int64_t c = 0; c < whole; c += B) {
        Word* const block = to + c * plane + pixel * B;
#pragma GCC unroll 32
        for (int k = 0; k < B; ++k) block[k] = Type::Pair(one[c + k], other[c + k]);
      }
      if (rest == 0) continue;
      Word* const end = to + whole * plane + pixel * last;
      for (int64_t c = 0; c < last; ++c)
        end[c] = c < rest ? Type::Pair(one[whole + c], other[whole + c]) : Word{};
    }
  }
}

// The pixels over which a gradient sums. Each image has `height` padded rows of `wide` pixels. The
// sum runs over the pixels at which the kernel starts for each row and column of the output.
struct Pixels {
  int64_t images, height, wide, rows, columns, stride;
};

// Sums over pixels the products of C channels of T neighbours in a row with V vectors of the
// cotangent's channels, and adds the first `some` channels to `sums`, an array
// (T, all input channels, all output channels). x is (images, height, wide, C), and the cotangent
// (images, rows, columns, V vectors).
template <typename Type, int T, int V, int C>
void KernelTile(const typename Type::Word* x, const typename Type::Word* cotangent,
                const Pixels& of, int64_t channels_in, int64_t channels_out, float* sums,
                int64_t some) {
  Vector sum[T][C][V] = {};
  for (int64_t n = 0; n < of.images; ++n) {
    for (int64_t i = 0; i < of.rows; ++i) {
      const auto* in = x + (n * of.height + of.stride * i) * of.wide * C;
      for (int64_t j = 0; j < of.columns; ++j, in += of.stride * C, cotangent += V * kLanes) {
        typename Type::Words change[V];
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) change[v] = Load<Type>(cotangent + v * kLanes);
#pragma GCC unroll 16
        for (int t = 0; t < T; ++t) {
#pragma GCC unroll 16
          for (int c = 0; c < C; ++c) {
#pragma GCC unroll 16
            for (int v = 0; v < V; ++v)
              sum[t][c][v] = Type::AddProducts(sum[t][c][v], in[t * C + c], change[v]);
          }
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) {
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) {
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) {
        float* const to = sums + (t * channels_in + c) * channels_out + v * kLanes;
        if (some == V * kLanes) {
          Store(to, Load<Float32>(to) + sum[t][c][v]);
        } else {
          StoreSome(to, LoadSome(to, some - v * kLanes) + sum[t][c][v], some - v * kLanes);
        }
      }
    }
  }
}

template <typename Type>
using KernelFunction = decltype(&KernelTile<Type, 1, 1, 1>);

template <typename Type, int T, int V, int... C>
KernelFunction<Type> KernelTileOf(int64_t channels, std::integer_sequence<int, C...>) {
  static constexpr KernelFunction<Type> all[] = {KernelTile<Type, T, V, C + 1>...};
  return all[channels - 1];
}

template <typename Type, int T, int V>
void KernelSums(ffi::ThreadPool& pool, const Images& in, const typename Type::Number* x,
                int64_t size, const Images& out, const typename Type::Number* cotangent,
                typename Type::Number* kernel, int64_t stride) {
  using Word = typename Type::Word;
  // Words pair images, since the sum runs over them.
  constexpr int kPair = Type::kPair;
  const int64_t pairs = Quotient(in.count, kPair);
  constexpr int kChannels = std::max(1, std::min(16 / V, kSums / (T * V)));
  const int64_t pad = size / 2, block = V * kLanes,
                total = size * size * in.channels * out.channels;
  const int64_t y_channels = Quotient(out.channels, block) * block;

  // A strided 1x1 kernel reads no pixel between its positions, so they are not copied.
  const int64_t step = size == 1 ? stride : 1, apart = stride / step,
                wide = size == 1 ? out.width : in.width + 2 * pad;
  const std::vector<typename Type::Number> zeros(std::max(in.channels, out.channels));

  // Describes `rows` rows of the output of some images, and the input that they read.
  auto pixels = [&](int64_t images, int64_t rows) {
    return Pixels{images, apart * (rows - 1) + size, wide, rows, out.width, apart};
  };
  // Packs the images of pair n as the m-th of these, in blocks of the channels of a tile.
  auto pack = [&](int64_t n, int64_t m, int64_t first, const Pixels& of, Word* x_blocks,
                  Word* y_blocks) {
    const int64_t x_image = of.height * of.wide, y_image = of.rows * of.columns;
    const int64_t images = std::min<int64_t>(kPair, in.count - n * kPair);
    CopyBlocks<Type, kChannels>(x + n * kPair * in.image(), images, in, stride * first - pad,
                                of.height, pad, step, of.images * x_image, m * x_image,
                                in.channels % kChannels, zeros.data(), x_blocks);
    CopyBlocks<Type, V * kLanes>(cotangent + n * kPair * out.image(), images, out, first, of.rows,
                                 0, 1, of.images * y_image, m * y_image, block, zeros.data(),
                                 y_blocks);
  };
  // Adds the contribution of input channels [first, end) to `sums`.
  auto add = [&](int64_t first, int64_t end, const Pixels& of, const Word* x_blocks,
                 const Word* y_blocks, float* sums) {
    const int64_t x_plane = of.images * of.height * of.wide,
                  y_plane = of.images * of.rows * of.columns;
    for (int64_t k = 0; k < out.channels; k += block) {
      for (int64_t c = first; c < end; c += kChannels) {
        const int64_t channels = std::min<int64_t>(kChannels, in.channels - c);
        const auto tile =
            KernelTileOf<Type, T, V>(channels, std::make_integer_sequence<int, kChannels>());
        for (int64_t tap = 0; tap < size * size; tap += T) {
          tile(x_blocks + c * x_plane + (tap / size * wide + tap % size) * channels,
               y_blocks + k * y_plane, of, in.channels, out.channels,
               sums + (tap * in.channels + c) * out.channels + k,
               std::min(block, out.channels - k));
        }
      }
    }
  };

  // Stores sums [first, end) in the dtype of the result.
  auto store = [&](const float* sums, int64_t first, int64_t end) {
    for (int64_t i = first; i < end; i += kLanes)
      Type::StoreNumbers(kernel + i, LoadSome(sums + i, end - i), end - i);
  };
  constexpr int64_t kPiece = 4096;

  if (total > kLargeKernel) {
    // Threads divide the input channels; segments of images follow one another.
    const Pixels one = pixels(1, out.height);
    const int64_t x_image = one.height * wide * in.channels;
    const int64_t images =
        std::max<int64_t>(1, std::min(pairs, kSegment / (out.height * out.width)));
    std::unique_ptr<Word[]> x_blocks(new Word[images * x_image]),
        y_blocks(new Word[images * out.height * out.width * y_channels]);
    std::unique_ptr<float[]> wide_sums;
    float* sums = nullptr;
    if constexpr (kPair == 1) {
      sums = std::fill_n(kernel, total, 0.0f) - total;
    } else {
      wide_sums.reset(new float[total]());
      sums = wide_sums.get();
    }
    for (int64_t n = 0; n < pairs; n += images) {
      const Pixels of = pixels(std::min(images, pairs - n), out.height);
      Parallel(pool, of.images,
               [&](int64_t m) { pack(n + m, m, 0, of, x_blocks.get(), y_blocks.get()); });
      constexpr int64_t kGroup = 4 * kChannels;
      Parallel(pool, Quotient(in.channels, kGroup), [&](int64_t group) {
        add(group * kGroup, std::min(in.channels, (group + 1) * kGroup), of, x_blocks.get(),
            y_blocks.get(), sums);
      });
    }
    if constexpr (kPair > 1) {
      Parallel(pool, Quotient(total, kPiece), [&](int64_t piece) {
        store(sums, piece * kPiece, std::min(total, (piece + 1) * kPiece));
      });
    }
    return;
  }
  // A piece is a band of rows of one image, or several images.
  const int64_t row = apart * wide * in.channels + out.row();
  const int64_t bands = Quotient(out.height, std::max<int64_t>(1, kBand / row)),
                rows = Quotient(out.height, bands);
  const int64_t images =
      bands > 1 ? 1 : std::max<int64_t>(1, std::min(Quotient(pairs, 16), kBand / (row * rows)));
  const int64_t pieces = Quotient(pairs, images) * bands;
  // Parts of the sum, each computed by one thread: 64, or as many as fit 4 MB, but at least 8.
  const int64_t parts =
      std::min(pieces, std::max<int64_t>(8, std::min<int64_t>(64, (1 << 20) / total)));
  std::unique_ptr<float[]> sums(new float[parts * total]());
  Parallel(pool, parts, [&](int64_t part) {
    for (int64_t piece = part * pieces / parts; piece < (part + 1) * pieces / parts; ++piece) {
      const int64_t n = piece / bands * images, first = piece % bands * rows;
      if (first >= out.height) continue;
      const Pixels of = pixels(std::min(images, pairs - n), std::min(rows, out.height - first));
      const int64_t x_size = of.images * of.height * wide * in.channels,
                    y_size = of.images * of.rows * out.width * y_channels;
      Word* const x_blocks = Scratch<Word>(x_size + y_size);
      Word* const y_blocks = x_blocks + x_size;
      for (int64_t m = 0; m < of.images; ++m) pack(n + m, m, first, of, x_blocks, y_blocks);
      add(0, in.channels, of, x_blocks, y_blocks, &sums[part * total]);
    }
  });
  Parallel(pool, Quotient(total, kPiece), [&](int64_t piece) {
    const int64_t first = piece * kPiece, end = std::min(total, first + kPiece);
    for (int64_t part = 1; part < parts; ++part) {
      for (int64_t i = first; i < end; ++i) sums[i] += sums[part * total + i];
    }
    store(sums.get(), first, end);
  });
}

// y[n, i, j, k] = sum over a, b, c of
//   x'[n, stride i + a - pad, stride j + b - pad, c] kernel[a, b, c, k],
// where x' has dilation - 1 zeros between the pixels of x. With a turned kernel the second factor
// is kernel[size - 1 - a, size - 1 - b, k, c].
template <typename Type, ffi::DataType kDataType>
ffi::Error Convolution(ffi::ThreadPool pool, ffi::Buffer<kDataType> x,
                       ffi::Buffer<kDataType> kernel, ffi::ResultBuffer<kDataType> y,
                       int64_t stride, int64_t dilation, bool turned) {
  const Images in(x.dimensions()), out(y->dimensions());
  const int64_t size = kernel.dimensions()[0];
  if (in.count * in.image() == 0) {
    std::fill_n(y->typed_data(), out.count * out.image(), 0);
    return ffi::Error::Success();
  }
  return Guarded([&] {
    const auto run = WideBlocks(out.channels) ? Outputs<Type, kWide> : Outputs<Type, kNarrow>;
    run(pool, in, x.typed_data(), size, kernel.typed_data(), nullptr, out, y->typed_data(), stride,
        dilation, turned, Epilogue<Type>{});
  });
}

// Computes the gradient of the kernel of `Convolution` with dilation 1.
template <typename Type, ffi::DataType kDataType>
ffi::Error KernelGradient(ffi::ThreadPool pool, ffi::Buffer<kDataType> x,
                          ffi::Buffer<kDataType> cotangent, ffi::ResultBuffer<kDataType> kernel,
                          int64_t stride) {
  const Images in(x.dimensions()), out(cotangent.dimensions());
  const int64_t size = kernel->dimensions()[0];
  if (in.count * in.image() == 0) {
    std::fill_n(kernel->typed_data(), kernel->element_count(), 0);
    return ffi::Error::Success();
  }
  return Guarded([&] {
    const bool wide = WideBlocks(out.channels);
    auto run = wide ? KernelSums<Type, 1, kWide> : KernelSums<Type, 1, kNarrow>;
    if (size == 3) run = wide ? KernelSums<Type, 3, kWide> : KernelSums<Type, 3, kNarrow>;
    if (size == 7) run = KernelSums<Type, 7, 1>;
    run(pool, in, x.typed_data(), size, out, cotangent.typed_data(), kernel->typed_data(), stride);
  });
}

template <ffi::DataType kDataType>
auto ConvolutionCall() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<ffi::Buffer<kDataType>>()
      .template Arg<ffi::Buffer<kDataType>>()
      .template Ret<ffi::Buffer<kDataType>>()
      .template Attr<int64_t>("stride")
      .template Attr<int64_t>("dilation")
      .template Attr<bool>("turned");
}

template <ffi::DataType kDataType>
auto KernelGradientCall() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<ffi::Buffer<kDataType>>()
      .template Arg<ffi::Buffer<kDataType>>()
      .template Ret<ffi::Buffer<kDataType>>()
      .template Attr<int64_t>("stride");
}

}  // namespace
}  // namespace flaxres

// Returns the number of channels in a block of a kernel for this many output channels.
extern "C" int64_t flaxres_block(int64_t channels) {
  return flaxres::WideBlocks(channels) ? flaxres::kWide * flaxres::kLanes : 16;
}

#if defined(FLAXRES_FLOAT32)
XLA_FFI_DEFINE_HANDLER_SYMBOL(flaxres_convolution_float32,
                              (flaxres::Convolution<flaxres::Float32, xla::ffi::F32>),
                              flaxres::ConvolutionCall<xla::ffi::F32>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(flaxres_kernel_gradient_float32,
                              (flaxres::KernelGradient<flaxres::Float32, xla::ffi::F32>),
                              flaxres::KernelGradientCall<xla::ffi::F32>());
#elif defined(FLAXRES_BFLOAT16) && defined(__AVX512BF16__)
XLA_FFI_DEFINE_HANDLER_SYMBOL(flaxres_convolution_bfloat16,
                              (flaxres::Convolution<flaxres::BFloat16, xla::ffi::BF16>),
                              flaxres::ConvolutionCall<xla::ffi::BF16>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(flaxres_kernel_gradient_bfloat16,
                              (flaxres::KernelGradient<flaxres::BFloat16, xla::ffi::BF16>),
                              flaxres::KernelGradientCall<xla::ffi::BF16>());
#endif
