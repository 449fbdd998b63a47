// Convolutions of NHWC images with all that follows them, for inference by XLA's CPU client: in
// float32, in bfloat16 as in convolution.cc, and of 8-bit numbers with whole sums where the processor
// multiplies these (AVX512_VNNI).
//
// Their kernels are packed once. As in convolution.cc, threads change no bit of a result.

#include "outputs.h"

namespace flaxres {
namespace {

// y = relu(factor * convolution(x) + summand + shortcut), by the kernel's blocks
// (blocks, depth, block, pair). The shortcut is read, and multiplied by its factor, if `added`.
template <typename Type, ffi::DataType kNumbers, ffi::DataType kKernel, ffi::DataType kResult,
          ffi::DataType kShortcut>
ffi::Error FusedConvolution(ffi::ThreadPool pool, ffi::Buffer<kNumbers> x,
                            ffi::Buffer<kKernel> kernel, ffi::Buffer<ffi::F32> factor,
                            ffi::Buffer<ffi::F32> summand, ffi::Buffer<kShortcut> shortcut,
                            ffi::ResultBuffer<kResult> y, int64_t size, int64_t stride, bool added,
                            float shortcut_factor, bool relu) {
  const Images in(x.dimensions()), out(y->dimensions());
  if (out.count * out.image() == 0) return ffi::Error::Success();
  Epilogue<Type> after{factor.typed_data(), summand.typed_data()};
  if (added) after.shortcut = shortcut.typed_data();
  after.shortcut_factor = shortcut_factor;
  after.relu = relu;
  return Guarded([&] {
    const auto run = WideBlocks(out.channels) ? Outputs<Type, kWide> : Outputs<Type, kNarrow>;
    run(pool, in, x.typed_data(), size, nullptr,
        reinterpret_cast<const typename Type::Word*>(kernel.typed_data()), out, y->typed_data(),
        stride, 1, false, after);
  });
}

template <ffi::DataType kNumbers, ffi::DataType kKernel, ffi::DataType kResult,
          ffi::DataType kShortcut>
auto FusedConvolutionCall() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<ffi::Buffer<kNumbers>>()
      .template Arg<ffi::Buffer<kKernel>>()
      .template Arg<ffi::Buffer<ffi::F32>>()
      .template Arg<ffi::Buffer<ffi::F32>>()
      .template Arg<ffi::Buffer<kShortcut>>()
      .template Ret<ffi::Buffer<kResult>>()
      .template Attr<int64_t>("size")
      .template Attr<int64_t>("stride")
      .template Attr<bool>("added")
      .template Attr<float>("shortcut_factor")
      .template Attr<bool>("relu");
}

#if defined(__AVX512VNNI__)
// Convolutions of 8-bit numbers, by the dtypes of their results and shortcuts.
template <typename ResultType, typename ShortcutType>
struct Quantised : UInt8 {
  using Result = ResultType;
  using Shortcut = ShortcutType;
};
#endif

}  // namespace
}  // namespace flaxres

using xla::ffi::BF16, xla::ffi::F32, xla::ffi::S8, xla::ffi::U8;
using flaxres::Float32;

#define FLAXRES_FUSED(name, Type, ...)                                              \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(flaxres_fused_convolution_##name,                   \
                                (flaxres::FusedConvolution<Type, __VA_ARGS__>),     \
                                (flaxres::FusedConvolutionCall<__VA_ARGS__>()))

// The dtypes are those of images, kernel, result and shortcut.
#if defined(FLAXRES_FLOAT32)
FLAXRES_FUSED(float32, Float32, F32, F32, F32, F32);
#elif defined(FLAXRES_BFLOAT16) && defined(__AVX512BF16__)
FLAXRES_FUSED(bfloat16, flaxres::BFloat16, BF16, BF16, BF16, BF16);
#elif defined(FLAXRES_UINT8) && defined(__AVX512VNNI__)
using flaxres::Quantised, flaxres::UInt8;
using ToFloat32 = Quantised<Float32, Float32>;
using ToFloat32FromUInt8 = Quantised<Float32, UInt8>;
using ToUInt8FromFloat32 = Quantised<UInt8, Float32>;
using ToUInt8 = Quantised<UInt8, UInt8>;
FLAXRES_FUSED(uint8_float32_float32, ToFloat32, U8, S8, F32, F32);
FLAXRES_FUSED(uint8_float32_uint8, ToFloat32FromUInt8, U8, S8, F32, U8);
FLAXRES_FUSED(uint8_uint8_float32, ToUInt8FromFloat32, U8, S8, U8, F32);
FLAXRES_FUSED(uint8_uint8_uint8, ToUInt8, U8, S8, U8, U8);
#endif
