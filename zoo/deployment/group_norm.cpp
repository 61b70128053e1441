// Group norm of float32 images with channels last, (b, y, x, c), and what goes before and after it. See fast_norm.py.
#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

using V = at::vec::Vectorized<float>;
constexpr int64_t WIDTH = V::size();
constexpr int64_t RUN = 256;  // pixels that are added up in float32, before these sums are in float64

struct Norm {
  const float *images, *shift, *weight, *bias;
  float* outputs;
  int64_t pixels, channels, groups;
  double eps;
  bool silu;

  // Adds to totals (channels,) the sums over pixels from `first` to `last`, or those of squares of what an offset is added to.
  template <bool squares>
  void add(const float* image, int64_t first, int64_t last, const float* offset, double* totals) const {
    std::vector<float> sums(channels);
    for (int64_t begin = first; begin < last; begin += RUN) {
      const int64_t end = std::min(begin + RUN, last);
      std::fill(sums.begin(), sums.end(), 0.f);
      for (int64_t p = begin; p < end; p += 4)
        for (int64_t c = 0; c < channels; c += WIDTH) {
          V sum = V::loadu(sums.data() + c);
          for (int64_t q = p; q < std::min(p + 4, end); q++) {
            V x = V::loadu(image + q * channels + c);
            if constexpr (squares) {
              x = x + V::loadu(offset + c);
              sum = at::vec::fmadd(x, x, sum);
            } else
              sum = sum + x;
          }
          sum.store(sums.data() + c);
        }
      for (int64_t c = 0; c < channels; c++) totals[c] += sums[c];
    }
  }

  // offset (channels,): what makes the mean of each group 0
  void centre(int64_t n, const double* totals, float* offset) const {
    const int64_t size = channels / groups;
    for (int64_t g = 0; g < groups; g++) {
      double sum = 0;
      for (int64_t c = g * size; c < (g + 1) * size; c++) sum += totals[c] / pixels + (shift ? shift[n * channels + c] : 0.f);
      for (int64_t c = g * size; c < (g + 1) * size; c++) offset[c] = (shift ? shift[n * channels + c] : 0.f) - sum / size;
    }
  }

  void scale(const double* totals, float* scales) const {
    const int64_t size = channels / groups;
    for (int64_t g = 0; g < groups; g++) {
      double sum = 0;
      for (int64_t c = g * size; c < (g + 1) * size; c++) sum += totals[c];
      const double reciprocal = 1 / std::sqrt(sum / (size * pixels) + eps);
      for (int64_t c = g * size; c < (g + 1) * size; c++) scales[c] = reciprocal * weight[c];
    }
  }

  void write(const float* image, float* output, int64_t first, int64_t last, const float* offset, const float* scales) const {
    const V one(1.f);
    for (int64_t p = first; p < last; p++)
      for (int64_t c = 0; c < channels; c += WIDTH) {
        const V x = V::loadu(image + p * channels + c) + V::loadu(offset + c);
        const V y = at::vec::fmadd(x, V::loadu(scales + c), V::loadu(bias + c));
        (silu ? y / (one + y.neg().exp()) : y).store(output + p * channels + c);
      }
  }

  // As many images as threads or more: each by one thread, in whose cache it stays. Else each in as many parts as make that.
  void run(int64_t count, int64_t threads) const {
    if (count * pixels == 0) return;
    const int64_t parts = count >= threads ? 1 : (threads + count - 1) / count, size = pixels * channels;
    std::vector<double> sums(count * parts * channels), squares(count * parts * channels);
    std::vector<float> offsets(count * channels), scales(count * channels);
    auto each = [&](auto work) {
#pragma omp parallel for num_threads(threads) schedule(static)
      for (int64_t n = 0; n < count * parts; n++)
        work(n, n / parts, n % parts * pixels / parts, (n % parts + 1) * pixels / parts);
    };
    auto gather = [&](std::vector<double>& totals, int64_t n) {
      double* total = totals.data() + n * parts * channels;
      for (int64_t part = 1; part < parts; part++)
        for (int64_t c = 0; c < channels; c++) total[c] += total[part * channels + c];
      return total;
    };
    auto add = [&](int64_t k, int64_t n, int64_t first, int64_t last) {
      this->add<false>(images + n * size, first, last, nullptr, sums.data() + k * channels);
    };
    auto add_squares = [&](int64_t k, int64_t n, int64_t first, int64_t last) {
      this->add<true>(images + n * size, first, last, offsets.data() + n * channels, squares.data() + k * channels);
    };
    auto finish = [&](int64_t k, int64_t n, int64_t first, int64_t last) {
      write(images + n * size, outputs + n * size, first, last, offsets.data() + n * channels, scales.data() + n * channels);
    };
    if (parts == 1) {
      each([&](int64_t k, int64_t n, int64_t first, int64_t last) {
        add(k, n, first, last);
        centre(n, gather(sums, n), offsets.data() + n * channels);
        add_squares(k, n, first, last);
        scale(gather(squares, n), scales.data() + n * channels);
        finish(k, n, first, last);
      });
      return;
    }
    each(add);
    for (int64_t n = 0; n < count; n++) centre(n, gather(sums, n), offsets.data() + n * channels);
    each(add_squares);
    for (int64_t n = 0; n < count; n++) scale(gather(squares, n), scales.data() + n * channels);
    each(finish);
  }
};

extern "C" {
int64_t width() { return WIDTH; }
void normalise(const float* images, const float* shift, const float* weight, const float* bias, float* outputs, int64_t count,
               int64_t pixels, int64_t channels, int64_t groups, double eps, int64_t silu, int64_t threads) {
  Norm{images, shift, weight, bias, outputs, pixels, channels, groups, eps, silu != 0}.run(count, threads);
}
}
