// Convolutions of NHWC images with odd square kernels: copies of images with their padding, tiles of
// the output, and their division among threads.

#pragma once

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
// (rows, width + 2 pad, channels). A word has kPair channels, the last one filled up by zeros.
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

// One position in the kernel: the offset of its pixel in the padded image, and the offset of its
// channels in the packed kernel.
struct Tap {
  int64_t pixel, channels;
};

// What follows the sums of a convolution for inference: a factor and a summand of each channel of
// the output, an image of its shape that is added with a factor (or null), and a ReLU. Without
// factors nothing follows. Those of channels are padded to whole blocks.
template <typename Type>
struct Epilogue {
  const float *factor = nullptr, *summand = nullptr;
  const typename Type::Shortcut::Number* shortcut = nullptr;
  float shortcut_factor = 1.0f;
  bool relu = false;

  // Returns what follows at a channel, and at a place in the output.
  Epilogue At(int64_t channel, int64_t place) const {
    Epilogue at = *this;
    if (factor != nullptr) at.factor += channel, at.summand += channel;
    if (shortcut != nullptr) at.shortcut += place;
    return at;
  }
  // Computes what follows for the first `some` of the channels from `channel`, at a place.
  Vector operator()(Vector sum, int64_t channel, int64_t place, int64_t some) const {
    sum = sum * Load<Float32>(factor + channel) + Load<Float32>(summand + channel);
    if (shortcut != nullptr)
      sum += shortcut_factor * Type::Shortcut::LoadNumbers(shortcut + place + channel, some);
    return relu ? (sum < 0.0f ? Vector{} : sum) : sum;
  }
};

// Computes P pixels of V vectors of output channels and stores the first `some` channels. Each is
// the sum over taps and input channels of a pixel's channel times a vector of the kernel. `step`,
// `channels` and taps count words.
template <typename Type, int V, int P>
void OutputTile(const typename Type::Word* x, int64_t step, const Tap* taps, int64_t count,
                int64_t channels, const typename Type::Word* kernel, typename Type::Result::Number* y,
                int64_t y_step, int64_t some, const Epilogue<Type>& after) {
  typename Type::Sums sum[P][V] = {};
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
  Vector value[P][V];
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) value[p][v] = Type::Floats(sum[p][v]);
  }
  if (after.factor != nullptr) {
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) {
        value[p][v] = some == V * kLanes
                          ? after(value[p][v], v * kLanes, p * y_step, kLanes)
                          : after(value[p][v], v * kLanes, p * y_step, some - v * kLanes);
      }
    }
  }
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) {
      auto* const to = y + p * y_step + v * kLanes;
      if (some == V * kLanes) {
        Type::Result::StoreNumbers(to, value[p][v], kLanes);
      } else {
        Type::Result::StoreNumbers(to, value[p][v], some - v * kLanes);
      }
    }
  }
}

template <typename Type>
using OutputFunction = decltype(&OutputTile<Type, 1, 1>);

template <typename Type, int V, int... P>
OutputFunction<Type> OutputTileOf(int64_t pixels, std::integer_sequence<int, P...>) {
  static constexpr OutputFunction<Type> all[] = {OutputTile<Type, V, P + 1>...};
  return all[pixels - 1];
}

// `packed` is a kernel of whole blocks, as `pack` below makes them, or null.
template <typename Type, int V>
void Outputs(ffi::ThreadPool& pool, const Images& in, const typename Type::Number* x, int64_t size,
             const typename Type::Number* kernel, const typename Type::Word* packed,
             const Images& out, typename Type::Result::Number* y, int64_t stride, int64_t dilation,
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
    if constexpr (kPair <= 2) {  // other kernels come packed
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

}  // namespace
}  // namespace flaxres
