// Winograd's convolution of 3x3 weights in one pass: what is transformed stays in the cache of a core, a block of tiles at a time.
// Tensors are of float32 with channels last, (b, y, x, c). See fast_convolution.py.
#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <cstdint>
#include <vector>

using V = at::vec::Vectorized<float>;
// A product makes ROWS x PANEL sums at once: 24 of the 32 registers of AVX-512, 12 of the 16 of AVX2.
constexpr int64_t WIDTH = V::size(), PANEL = 2 * WIDTH, ROWS = WIDTH == 16 ? 12 : 6;
constexpr int64_t CACHE = 512 * 1024;  // bytes for transformed pixels and products: half of a core's cache or less, on most

// Along one axis: `pixels` every `step` make the factors of as many products, of which `outputs` are made.
struct Plain {
  static constexpr int pixels = 4, outputs = 2, step = 2;
  static inline void factors(const V* d, V* f) {
    f[0] = d[0] - d[2];
    f[1] = d[1] + d[2];
    f[2] = d[2] - d[1];
    f[3] = d[1] - d[3];
  }
  static inline void sums(const V* p, V* o) {
    o[0] = p[0] + p[1] + p[2];
    o[1] = p[1] - p[2] - p[3];
  }
};
struct Upsampled {
  static constexpr int pixels = 3, outputs = 2, step = 1;
  static inline void factors(const V* d, V* f) {
    f[0] = d[0] - d[1];
    f[1] = d[1];
    f[2] = d[2] - d[1];
  }
  static inline void sums(const V* p, V* o) {
    o[0] = p[0] + p[1];
    o[1] = p[1] + p[2];
  }
};

// c (ROWS, PANEL) = a (ROWS, k) times b (k, PANEL)
static inline void multiply(const float* a, int64_t a_row, const float* b, float* c, int64_t c_row, int64_t k) {
  V sums[ROWS][2];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; r++) sums[r][0] = sums[r][1] = V(0.f);
  for (int64_t n = 0; n < k; n++, b += PANEL) {
    const V left = V::loadu(b), right = V::loadu(b + WIDTH);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++) {
      const V x(a[r * a_row + n]);
      sums[r][0] = at::vec::fmadd(x, left, sums[r][0]);
      sums[r][1] = at::vec::fmadd(x, right, sums[r][1]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; r++) {
    sums[r][0].store(c + r * c_row);
    sums[r][1].store(c + r * c_row + WIDTH);
  }
}

template <class Kind>
struct Convolution {
  static constexpr int N = Kind::pixels, M = Kind::outputs;
  const float *images, *weight, *bias;
  float* outputs;
  int64_t height, width, in, out;
  int64_t rows, columns, tiles;  // of an image, of an image, of all
  int64_t high, wide;            // of an output

  // Factors of the tiles from `first`: (N * N, at intervals of `apart`), each (count, in).
  void transform(int64_t first, int64_t count, float* factors, int64_t apart, const float* zeros) const {
    for (int64_t t = 0; t < count; t++) {
      const int64_t tile = first + t, image = tile / (rows * columns), row = tile / columns % rows, column = tile % columns;
      const float* from[N][N];
      for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
          const int64_t y = row * Kind::step - 1 + i, x = column * Kind::step - 1 + j;
          const bool inside = y >= 0 && y < height && x >= 0 && x < width;
          from[i][j] = inside ? images + ((image * height + y) * width + x) * in : zeros;
        }
      for (int64_t c = 0; c < in; c += WIDTH) {
        V half[N][N], line[N], made[N];
#pragma GCC unroll 8
        for (int j = 0; j < N; j++) {
#pragma GCC unroll 8
          for (int i = 0; i < N; i++) line[i] = V::loadu(from[i][j] + c);
          Kind::factors(line, made);
#pragma GCC unroll 8
          for (int i = 0; i < N; i++) half[i][j] = made[i];
        }
#pragma GCC unroll 8
        for (int i = 0; i < N; i++) {
          Kind::factors(half[i], made);
#pragma GCC unroll 8
          for (int j = 0; j < N; j++) made[j].store(factors + (i * N + j) * apart + t * in + c);
        }
      }
    }
  }

  void finish(int64_t first, int64_t count, const float* products, int64_t apart) const {
    for (int64_t t = 0; t < count; t++) {
      const int64_t tile = first + t, image = tile / (rows * columns), row = tile / columns % rows, column = tile % columns;
      for (int64_t c = 0; c < out; c += WIDTH) {
        const V added = V::loadu(bias + c);
        V half[N][M], line[N], made[M];
#pragma GCC unroll 8
        for (int i = 0; i < N; i++) {
#pragma GCC unroll 8
          for (int j = 0; j < N; j++) line[j] = V::loadu(products + (i * N + j) * apart + t * out + c);
          Kind::sums(line, half[i]);
        }
#pragma GCC unroll 8
        for (int j = 0; j < M; j++) {
#pragma GCC unroll 8
          for (int i = 0; i < N; i++) line[i] = half[i][j];
          Kind::sums(line, made);
          const int64_t x = column * M + j;
#pragma GCC unroll 8
          for (int i = 0; i < M; i++) {
            const int64_t y = row * M + i;
            if (y < high && x < wide) (made[i] + added).store(outputs + ((image * high + y) * wide + x) * out + c);
          }
        }
      }
    }
  }

  void run(int64_t threads) const {
    if (tiles == 0) return;
    int64_t block = CACHE / sizeof(float) / (N * N * (in + out));
    block = std::max<int64_t>(std::min(block, (tiles + threads - 1) / threads), 1);
    block = (block + ROWS - 1) / ROWS * ROWS;
    // one line of a cache more than the numbers, so that they are not a power of two apart, which caches hold few of
    const int64_t blocks = (tiles + block - 1) / block, in_apart = block * in + 16, out_apart = block * out + 16;
#pragma omp parallel num_threads(threads)
    {
      std::vector<float> zeros(in, 0.f);
      static thread_local std::vector<float> space;
      space.resize(std::max<size_t>(space.size(), N * N * (in_apart + out_apart)), 0.f);
      float *factors = space.data(), *products = factors + N * N * in_apart;
#pragma omp for schedule(dynamic)
      for (int64_t n = 0; n < blocks; n++) {
        const int64_t first = n * block, count = std::min(block, tiles - first);
        transform(first, count, factors, in_apart, zeros.data());
        for (int p = 0; p < N * N; p++)
          for (int64_t c = 0; c < out; c += PANEL)
            for (int64_t t = 0; t < count; t += ROWS)
              multiply(factors + p * in_apart + t * in, in, weight + (p * out + c) * in, products + p * out_apart + t * out + c,
                       out, in);
        finish(first, count, products, out_apart);
      }
    }
  }
};

template <class Kind>
static void convolve(const float* images, const float* weight, const float* bias, float* outputs, int64_t count, int64_t height,
                     int64_t width, int64_t in, int64_t out, int64_t threads) {
  const int64_t rows = (height + Kind::step - 1) / Kind::step, columns = (width + Kind::step - 1) / Kind::step;
  const int64_t times = Kind::outputs / Kind::step;
  Convolution<Kind>{images, weight, bias,    outputs,              height,         width,        in,
                    out,    rows,   columns, count * rows * columns, height * times, width * times}
      .run(threads);
}

extern "C" {
int64_t panel() { return PANEL; }
void convolve_plain(const float* images, const float* weight, const float* bias, float* outputs, int64_t count, int64_t height,
                    int64_t width, int64_t in, int64_t out, int64_t threads) {
  convolve<Plain>(images, weight, bias, outputs, count, height, width, in, out, threads);
}
void convolve_upsampled(const float* images, const float* weight, const float* bias, float* outputs, int64_t count,
                        int64_t height, int64_t width, int64_t in, int64_t out, int64_t threads) {
  convolve<Upsampled>(images, weight, bias, outputs, count, height, width, in, out, threads);
}
}
