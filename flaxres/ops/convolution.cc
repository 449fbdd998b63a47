// Convolutions of NHWC images for XLA's CPU client, and the gradients of their kernels: in float32,
// and in bfloat16 with sums in float32 where the processor multiplies bfloat16 (AVX512_BF16).
//
// XLA calls the handlers at the end of this file with its own buffers and threads. The order of all
// sums depends on the shapes alone. The number of threads and the division of work among them
// change no bit of the result.

#include "native.h"

namespace flaxres {
namespace {

// Vectors in a block of output channels: 16 channels, or 32 (wide) if that leaves no more lanes
// empty. The last block may have fewer channels.
constexpr int kNarrow = 16 / kLanes;
constexpr int kWide = kLanes == 16 ? 2 : kNarrow;
// Floats of an image that a thread processes at a time. They leave room for the other operands in a
// second-level cache of 512 KB.
constexpr int64_t kBand = 1 << 16;
// With at most this many pixels in a batch, threads divide the kernel among themselves.
constexpr int64_t kFewPixels = 1024;
// Rows of at most this many pixels are not divided into tiles.
constexpr int64_t kShortRow = 16;
// For kernels of more than kLargeKernel floats, threads divide the sums of a gradient in place of
// the images. About kSegment pixels are summed at a time.
constexpr int64_t kLargeKernel = 1 << 16, kSegment = 2048;

inline bool WideBlocks(int64_t channels) {
  return Quotient(channels, 16) * 16 % (kWide * kLanes) == 0;
}

struct Images {
  int64_t count, height, width, channels;

  explicit Images(ffi::Span<const int64_t> shape)
      : count(shape[0]), height(shape[1]), width(shape[2]), channels(shape[3]) {}
  int64_t row() const { return width * channels; }
  int64_t image() const { return height * row(); }
};

// Copies rows [first, first + rows) of an image padded by zeros into an array of words
// (rows, width + 2 pad, channels). The channels are in pairs, the last one alone if they are odd.
template <typename Type>
void CopyPadded(const typename Type::Number* image, const Images& of, int64_t first, int64_t rows,
                int64_t pad, typename Type::Word* to) {
  using Word = typename Type::Word;
  const int64_t channels = Quotient(of.channels, Type::kPair), margin = pad * channels,
                row = of.width * channels;
  for (int64_t y = first; y < first + rows; ++y) {
    if (y < 0 || y >= of.height) {
      to = std::fill_n(to, row + 2 * margin, Word{});
      continue;
    }
    to = std::fill_n(to, margin, Word{});
    const auto* from = image + y * of.row();
    if (of.channels % Type::kPair == 0) {
      std::memcpy(to, from, row * sizeof(Word));
      to += row;
    } else {
      for (int64_t x = 0; x < of.width; ++x, from += of.channels, to += channels) {
        to[channels - 1] = 0;
        std::memcpy(to, from, of.channels * sizeof(*from));
      }
    }
    to = std::fill_n(to, margin, Word{});
  }
}

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

// One position in the kernel: the offset of its pixel in the padded image, and the offset of its
// channels in the packed kernel.
struct Tap {
  int64_t pixel, channels;
};

// What follows the sums of a convolution for inference: a factor and a summand of each channel of
// the output, an image of its shape that is added (or null), and a ReLU. Without factors nothing
// follows. Factors and summands are padded to whole blocks.
template <typename Type>
struct Epilogue {
  const float *factor = nullptr, *summand = nullptr;
  const typename Type::Number* shortcut = nullptr;
  bool relu = false;

  // Returns what follows at a channel, and at a place in the output.
  Epilogue At(int64_t channel, int64_t place) const {
    if (factor == nullptr) return *this;
    return {factor + channel, summand + channel, shortcut ? shortcut + place : nullptr, relu};
  }
  // Computes what follows for the first `some` of the channels from `channel`, at a place.
  Vector operator()(Vector sum, int64_t channel, int64_t place, int64_t some) const {
    sum = sum * Load<Float32>(factor + channel) + Load<Float32>(summand + channel);
    if (shortcut != nullptr) sum += Type::LoadNumbers(shortcut + place + channel, some);
    return relu ? (sum < 0.0f ? Vector{} : sum) : sum;
  }
};

// Computes P pixels of V vectors of output channels and stores the first `some` channels. Each is
// the sum over taps and input channels of a pixel's channel times a vector of the kernel. `step`,
// `channels` and taps count words.
template <typename Type, int V, int P>
void OutputTile(const typename Type::Word* x, int64_t step, const Tap* taps, int64_t count,
                int64_t channels, const typename Type::Word* kernel, typename Type::Number* y,
                int64_t y_step, int64_t some, const Epilogue<Type>& after) {
  Vector sum[P][V] = {};
  for (int64_t t = 0; t < count; ++t) {
    const auto* in = x + taps[t].pixel;
    const auto* weights = kernel + taps[t].channels;
    for (int64_t c = 0; c < channels; ++c, weights += V * kLanes) {
      typename Type::Words weight[V];
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) weight[v] = Load<Type>(weights + v * kLanes);
#pragma GCC unroll 16
      for (int p = 0; p < P; ++p) {
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v)
          sum[p][v] = Type::AddProducts(sum[p][v], in[p * step + c], weight[v]);
      }
    }
  }
  if (after.factor != nullptr) {
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) {
        sum[p][v] = some == V * kLanes
                        ? after(sum[p][v], v * kLanes, p * y_step, kLanes)
                        : after(sum[p][v], v * kLanes, p * y_step, some - v * kLanes);
      }
    }
  }
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) {
      auto* const to = y + p * y_step + v * kLanes;
      if (some == V * kLanes) {
        Type::StoreNumbers(to, sum[p][v], kLanes);
      } else {
        Type::StoreNumbers(to, sum[p][v], some - v * kLanes);
      }
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
using OutputFunction = decltype(&OutputTile<Type, 1, 1>);
template <typename Type>
using KernelFunction = decltype(&KernelTile<Type, 1, 1, 1>);

template <typename Type, int V, int... P>
OutputFunction<Type> OutputTileOf(int64_t pixels, std::integer_sequence<int, P...>) {
  static constexpr OutputFunction<Type> all[] = {OutputTile<Type, V, P + 1>...};
  return all[pixels - 1];
}

template <typename Type, int T, int V, int... C>
KernelFunction<Type> KernelTileOf(int64_t channels, std::integer_sequence<int, C...>) {
  static constexpr KernelFunction<Type> all[] = {KernelTile<Type, T, V, C + 1>...};
  return all[channels - 1];
}

// `packed` is a kernel of whole blocks, as `pack` below makes them, or null.
template <typename Type, int V>
void Outputs(ffi::ThreadPool& pool, const Images& in, const typename Type::Number* x, int64_t size,
             const typename Type::Number* kernel, const typename Type::Word* packed,
             const Images& out, typename Type::Number* y, int64_t stride, int64_t dilation,
             bool turned, const Epilogue<Type>& after) {
  using Word = typename Type::Word;
  constexpr int kPair = Type::kPair, kPixels = std::min(8, kSums / V);
  // Channels of the input in words. Where they are whole pairs, the input is an array of words.
  const int64_t words = Quotient(in.channels, kPair);
  const Word* const x_words =
      in.channels % kPair == 0 ? reinterpret_cast<const Word*>(x) : nullptr;
  const int64_t pad = size / 2, wide = (in.width + 2 * pad) * words, block = V * kLanes,
                blocks = Quotient(out.channels, block);
  const int64_t depth = size * size * words;
  // With a dilated input the taps depend on the output's position modulo `dilation`. Rows and
  // columns count the pixels of one such position.
  const int64_t all_rows = Quotient(out.height, dilation);

  auto channels_of = [&](int64_t b) { return std::min(block, out.channels - b * block); };
  // Packs a block of the kernel's output channels into an array (depth, block), padded by zeros. A
  // turned kernel is (size, size, output channels, input channels), rotated by 180 degrees.
  auto pack = [&](int64_t b, Word* to) {
    const int64_t channels = channels_of(b);
    if (channels < block) std::fill_n(to, depth * block, Word{});
    if (!turned) {
      const auto* from = kernel + b * block;
      for (int64_t tap = 0; tap < size * size; ++tap) {
        for (int64_t c = 0; c < in.channels; c += kPair, to += block) {
          const bool whole = c + kPair <= in.channels;
          const auto* const next = from + (kPair - 1) * out.channels;
          for (int64_t k = 0; k < channels; ++k)
            to[k] = whole ? Type::Pair(from[k], next[k]) : Type::Pair(from[k], 0);
          from += std::min<int64_t>(kPair, in.channels - c) * out.channels;
        }
      }
      return;
    }
    for (int64_t tap = size * size - 1; tap >= 0; --tap, to += words * block) {
      const auto* const from = kernel + (tap * out.channels + b * block) * in.channels;
      for (int64_t first = 0; first < words; first += 16) {
        for (int64_t k = 0; k < channels; ++k) {
          for (int64_t c = first; c < std::min(first + 16, words); ++c) {
            const auto* const pair = from + k * in.channels + c * kPair;
            to[c * block + k] =
                Type::Pair(pair[0], (c + 1) * kPair <= in.channels ? pair[kPair - 1] : 0);
          }
        }
      }
    }
  };
  // Returns the padded part of image n that rows [first, end) of the output read. Without padding
  // and with whole pairs it is not copied.
  auto padded = [&](int64_t n, int64_t first, int64_t end, Word* to) -> const Word* {
    if (pad == 0 && x_words != nullptr)
      return x_words + (n * in.height + stride * first) * in.width * words;
    CopyPadded<Type>(x + n * in.image(), in, stride * first - pad,
                     stride * (end - first - 1) + size, pad, to);
    return to;
  };
  auto compute = [&](int64_t n, int64_t first, int64_t end, const Word* band, int64_t b,
                     const Word* part) {
    std::vector<Tap> taps(size * size);
    for (int64_t place = 0; place < dilation * dilation; ++place) {
      const int64_t top = place / dilation, left = place % dilation;
      int64_t count = 0;
      for (int64_t tap = 0; tap < size * size; ++tap) {
        const int64_t down = top + tap / size - pad, right = left + tap % size - pad;
        if (down % dilation != 0 || right % dilation != 0) continue;
        taps[count++] = {(down / dilation + pad) * wide + (right / dilation + pad) * words,
                         tap * words * block};
      }
      const int64_t columns = Quotient(out.width - left, dilation);
      if (columns <= 0) continue;
      const int64_t most = Quotient(columns, Quotient(columns, kPixels));
      for (int64_t row = first; row < end && dilation * row + top < out.height; ++row) {
        const Word* from = band + stride * (row - first) * wide;
        const int64_t place =
            n * out.image() + (dilation * row + top) * out.row() + left * out.channels + b * block;
        for (int64_t column = 0; column < columns; column += most) {
          const auto tile = OutputTileOf<Type, V>(std::min(most, columns - column),
                                                  std::make_integer_sequence<int, kPixels>());
          const int64_t at = place + dilation * column * out.channels;
          tile(from + stride * column * words, stride * words, taps.data(), count, words, part,
               y + at, dilation * out.channels, channels_of(b), after.At(b * block, at));
        }
      }
    }
  };

  std::unique_ptr<Word[]> all;
  auto pack_all = [&] {
    if (packed != nullptr) return;
    if constexpr (kPair == 1) {
      if (out.channels == block && !turned) {
        packed = kernel;
        return;
      }
    }
    all.reset(new Word[depth * blocks * block]);
    Parallel(pool, blocks, [&](int64_t b) { pack(b, &all[b * depth * block]); });
    packed = all.get();
  };

  if (Quotient(out.width, dilation) <= kShortRow && in.count >= kPixels && x_words != nullptr) {
    // A tile takes the same pixel of several images, and skips taps in the padding.
    pack_all();
    const int64_t images = Quotient(Quotient(in.count, Threads(pool)), kPixels) * kPixels,
                  groups = Quotient(in.count, images);
    Parallel(pool, groups * blocks, [&](int64_t index) {
      const int64_t first = index / blocks * images, end = std::min(in.count, first + images),
                    b = index % blocks;
      std::vector<Tap> taps(size * size);
      for (int64_t pixel = 0; pixel < out.height * out.width; ++pixel) {
        int64_t count = 0;
        for (int64_t tap = 0; tap < size * size; ++tap) {
          const int64_t down = pixel / out.width * stride + tap / size - pad,
                        right = pixel % out.width * stride + tap % size - pad;
          if (down < 0 || down % dilation != 0 || down / dilation >= in.height) continue;
          if (right < 0 || right % dilation != 0 || right / dilation >= in.width) continue;
          taps[count++] = {(down / dilation * in.width + right / dilation) * words,
                           tap * words * block};
        }
        for (int64_t n = first; n < end; n += kPixels) {
          const auto tile = OutputTileOf<Type, V>(std::min<int64_t>(kPixels, end - n),
                                                  std::make_integer_sequence<int, kPixels>());
          const int64_t image = in.height * in.width * words,
                        at = n * out.image() + pixel * out.channels + b * block;
          tile(x_words + n * image, image, taps.data(), count, words, packed + b * depth * block,
               y + at, out.image(), channels_of(b), after.At(b * block, at));
        }
      }
    });
    return;
  }
  if (in.count * out.height * out.width <= kFewPixels && blocks >= Threads(pool)) {
    // Reading the kernel dominates: each thread takes one block of it.
    Parallel(pool, blocks, [&](int64_t b) {
      Word* const room = Scratch<Word>(depth * block + (stride * (all_rows - 1) + size) * wide);
      const Word* const part = packed != nullptr ? packed + b * depth * block : room;
      if (packed == nullptr) pack(b, room);
      for (int64_t n = 0; n < in.count; ++n)
        compute(n, 0, all_rows, padded(n, 0, all_rows, room + depth * block), b, part);
    });
    return;
  }
  pack_all();
  const int64_t bands = std::min(all_rows, std::max(Quotient(8 * Threads(pool), in.count),
                                                    Quotient(all_rows * stride * wide, kBand)));
  const int64_t rows = Quotient(all_rows, bands);
  Parallel(pool, in.count * bands, [&](int64_t index) {
    const int64_t n = index / bands, first = index % bands * rows,
                  end = std::min(all_rows, first + rows);
    if (first >= end) return;
    const Word* const band =
        padded(n, first, end, Scratch<Word>((stride * (end - first - 1) + size) * wide));
    for (int64_t b = 0; b < blocks; ++b)
      compute(n, first, end, band, b, packed + b * depth * block);
  });
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

// y = relu(factor * convolution(x) + summand + shortcut), by the kernel's blocks
// (blocks, depth, block, pair). The shortcut is read if `added`.
template <typename Type, ffi::DataType kDataType>
ffi::Error FusedConvolution(ffi::ThreadPool pool, ffi::Buffer<kDataType> x,
                            ffi::Buffer<kDataType> kernel, ffi::Buffer<ffi::F32> factor,
                            ffi::Buffer<ffi::F32> summand, ffi::Buffer<kDataType> shortcut,
                            ffi::ResultBuffer<kDataType> y, int64_t size, int64_t stride,
                            bool added, bool relu) {
  const Images in(x.dimensions()), out(y->dimensions());
  if (out.count * out.image() == 0) return ffi::Error::Success();
  const Epilogue<Type> after{factor.typed_data(), summand.typed_data(),
                             added ? shortcut.typed_data() : nullptr, relu};
  return Guarded([&] {
    const auto run = WideBlocks(out.channels) ? Outputs<Type, kWide> : Outputs<Type, kNarrow>;
    run(pool, in, x.typed_data(), size, nullptr,
        reinterpret_cast<const typename Type::Word*>(kernel.typed_data()), out, y->typed_data(),
        stride, 1, false, after);
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
auto FusedConvolutionCall() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<ffi::Buffer<kDataType>>()
      .template Arg<ffi::Buffer<kDataType>>()
      .template Arg<ffi::Buffer<ffi::F32>>()
      .template Arg<ffi::Buffer<ffi::F32>>()
      .template Arg<ffi::Buffer<kDataType>>()
      .template Ret<ffi::Buffer<kDataType>>()
      .template Attr<int64_t>("size")
      .template Attr<int64_t>("stride")
      .template Attr<bool>("added")
      .template Attr<bool>("relu");
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

XLA_FFI_DEFINE_HANDLER_SYMBOL(flaxres_convolution_float32,
                              (flaxres::Convolution<flaxres::Float32, xla::ffi::F32>),
                              flaxres::ConvolutionCall<xla::ffi::F32>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(flaxres_fused_convolution_float32,
                              (flaxres::FusedConvolution<flaxres::Float32, xla::ffi::F32>),
                              flaxres::FusedConvolutionCall<xla::ffi::F32>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(flaxres_kernel_gradient_float32,
                              (flaxres::KernelGradient<flaxres::Float32, xla::ffi::F32>),
                              flaxres::KernelGradientCall<xla::ffi::F32>());
#if defined(__AVX512BF16__)
XLA_FFI_DEFINE_HANDLER_SYMBOL(flaxres_convolution_bfloat16,
                              (flaxres::Convolution<flaxres::BFloat16, xla::ffi::BF16>),
                              flaxres::ConvolutionCall<xla::ffi::BF16>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(flaxres_fused_convolution_bfloat16,
                              (flaxres::FusedConvolution<flaxres::BFloat16, xla::ffi::BF16>),
                              flaxres::FusedConvolutionCall<xla::ffi::BF16>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(flaxres_kernel_gradient_bfloat16,
                              (flaxres::KernelGradient<flaxres::BFloat16, xla::ffi::BF16>),
                              flaxres::KernelGradientCall<xla::ffi::BF16>());
#endif
