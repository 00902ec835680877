// What stands between the matmuls of a training step on a CPU, each in one pass: attention within documents, experts' rows
// and SwiGLU, cross-entropy with its gradient, RMSNorm. pipeline/model/cpu_kernels.py compiles and calls this, and says what each computes.
//
// Plain C functions without torch's headers, which would take half a minute to compile. Vectors are GCC's and Clang's own
// (`vector_size`), so that one source serves every processor. Every sum is made in the same order on each run; only
// rms_norm_backward's depends on the number of threads.
//
// Legend: B batch, T time, N = B·T, H query heads, G key/value heads, D head size, P = D rounded up to whole tiles,
// L length of a document, M = L rounded up to whole vectors, R query rows at a time, C embedding, V vocabulary; of
// experts: E experts, K experts of a token, I an expert's width, J = 2 · I (gate beside up), S rows sorted by expert.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace {

constexpr int64_t kLanes = 16, kTile = 2 * kLanes, kRows = 8;

typedef float Floats __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint32_t Words __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint16_t Halves __attribute__((vector_size(32), aligned(2), may_alias));

inline Floats load(const float* from) { return *reinterpret_cast<const Floats*>(from); }
inline void store(float* to, Floats x) { *reinterpret_cast<Floats*>(to) = x; }
inline Floats all(float x) { return x - Floats{}; }

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

inline float sum(Floats x) {
  float total = 0;
  for (int i = 0; i < kLanes; i++) total += x[i];
  return total;
}

inline float largest(Floats x) {
  float most = x[0];
  for (int i = 1; i < kLanes; i++) most = x[i] > most ? x[i] : most;
  return most;
}

// exp with an error of 2e-7 of its value: 2^n · e^r, |r| <= ln(2) / 2, e^r by its Taylor series. NaN stays NaN.
inline Floats exponential(Floats x) {
  x = x < -87.0f ? all(-87.0f) : x;
  x = x > 88.0f ? all(88.0f) : x;
  const float round = 12582912.0f;  // 1.5 · 2^23: what is added to it has no bits left behind the point
  Floats shifted = x * 1.44269504f + round, n = shifted - round;
  Floats r = x - n * 0.693145752f - n * 1.42860677e-6f;
  Floats y = r * (1.0f / 5040) + 1.0f / 720;
  y = y * r + 1.0f / 120;
  y = y * r + 1.0f / 24;
  y = y * r + 1.0f / 6;
  y = y * r + 0.5f;
  y = y * r + 1.0f;
  y = y * r + 1.0f;
  Ints bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = bits << 23;
  Ints result;
  std::memcpy(&result, &y, sizeof result);
  result = result + bits;
  std::memcpy(&y, &result, sizeof y);
  return y;
}

inline Floats from_bfloat16(const uint16_t* from) {
  Words bits = __builtin_convertvector(*reinterpret_cast<const Halves*>(from), Words) << 16;
  Floats x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline void to_bfloat16(uint16_t* to, Floats x) {  // to the nearest, ties to even
  Words bits;
  std::memcpy(&bits, &x, sizeof bits);
  bits = x == x ? (bits + 0x7fff + ((bits >> 16) & 1)) >> 16 : Words{} + 0x7fc0u;
  *reinterpret_cast<Halves*>(to) = __builtin_convertvector(bits, Halves);
}

// Rows that are stored in float32 or, as uint16_t, in bfloat16.
inline Floats load_as(const float* from) { return load(from); }
inline Floats load_as(const uint16_t* from) { return from_bfloat16(from); }
inline void store_as(float* to, Floats x) { store(to, x); }
inline void store_as(uint16_t* to, Floats x) { to_bfloat16(to, x); }

// A vector of a row; the last one may be less than whole, and goes by way of a vector's room.
template <class T>
struct Part {
  T* row;
  int64_t at, count;  // elements; kLanes but for the last

  Floats get() const {
    if (count == kLanes) return load_as(row + at);
    T room[kLanes] = {};
    std::copy_n(row + at, count, room);
    return load_as(room);
  }
  void set(Floats x) const {
    if (count == kLanes) return store_as(row + at, x);
    T room[kLanes];
    store_as(room, x);
    std::copy_n(room, count, row + at);
  }
};

template <class T>
inline Part<T> part(T* row, int64_t at, int64_t size) {
  return {row, at, std::min(kLanes, size - at)};
}

inline Floats sigmoid(Floats x) { return 1.0f / (1.0f + exponential(-x)); }

inline int64_t rounded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// --- attention -------------------------------------------------------------------------------------------------------

struct Item {  // one document and one key/value head
  int64_t first, length, group;
};

std::vector<Item> items(const int64_t* begin_BT, int64_t B, int64_t T, int64_t G) {
  std::vector<Item> found;
  for (int64_t n = 0; n < B * T;) {
    int64_t end = n + 1;
    while (end % T && begin_BT[end] == begin_BT[n]) end++;
    for (int64_t g = 0; g < G; g++) found.push_back({n, end - n, g});
    n = end;
  }
  std::stable_sort(found.begin(), found.end(), [](const Item& a, const Item& b) { return a.length > b.length; });
  return found;
}

// A head's part of the projection's output: RMSNorm where `weight_D` is given, then the rotary embedding.
struct Rotary {
  const float *cos_ND, *sin_ND;
  int64_t D;
  float eps;

  float scale(const float* x_D) const {
    float squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t d = 0; d < D; d++) squares += x_D[d] * x_D[d];
    return 1 / std::sqrt(squares / D + eps);
  }

  void forward(const float* x_D, const float* weight_D, int64_t n, float* y_D) const {
    const float *cos = cos_ND + n * D, *sin = sin_ND + n * D, by = weight_D ? scale(x_D) : 1;
    const int64_t half = D / 2;
#pragma omp simd
    for (int64_t d = 0; d < half; d++) {
      float a = x_D[d] * by * (weight_D ? weight_D[d] : 1), b = x_D[d + half] * by * (weight_D ? weight_D[d + half] : 1);
      y_D[d] = a * cos[d] - b * sin[d];
      y_D[d + half] = b * cos[d + half] + a * sin[d + half];
    }
  }

  // Of L tokens whose rows lie `row` apart: keys as `forward` gives them, and values, both P apart.
  void keys_and_values(const float* keys, const float* values, const float* weight_D, int64_t first, int64_t L, int64_t row,
                       int64_t P, float* k_LP, float* v_LP) const {
    for (int64_t l = 0; l < L; l++) {
      forward(keys + l * row, weight_D, first + l, k_LP + l * P);
      std::copy_n(values + l * row, D, v_LP + l * P);
    }
  }

  // grad_D, of what `forward` gave, becomes that of x_D in `out_D`; the weight's is added to.
  void backward(float* grad_D, const float* x_D, const float* weight_D, int64_t n, float* out_D, float* grad_weight_D)
      const {
    const float *cos = cos_ND + n * D, *sin = sin_ND + n * D;
    const int64_t half = D / 2;
#pragma omp simd
    for (int64_t d = 0; d < half; d++) {
      float a = grad_D[d], b = grad_D[d + half];
      grad_D[d] = a * cos[d] + b * sin[d + half];
      grad_D[d + half] = b * cos[d + half] - a * sin[d];
    }
    if (!weight_D) {
      std::copy(grad_D, grad_D + D, out_D);
      return;
    }
    const float by = scale(x_D);
    float along = 0;
#pragma omp simd reduction(+ : along)
    for (int64_t d = 0; d < D; d++) {
      grad_weight_D[d] += grad_D[d] * x_D[d] * by;
      along += grad_D[d] * weight_D[d] * x_D[d] * by;
    }
    along /= D;
#pragma omp simd
    for (int64_t d = 0; d < D; d++) out_D[d] = by * (grad_D[d] * weight_D[d] - x_D[d] * by * along);
  }
};

void transposed(const float* x_LP, int64_t L, int64_t P, int64_t D, int64_t M, float* x_DM) {
  for (int64_t d = 0; d < D; d++) {
    for (int64_t l = 0; l < L; l++) x_DM[d * M + l] = x_LP[l * P + d];
    std::fill(x_DM + d * M + L, x_DM + (d + 1) * M, 0.0f);
  }
}

// s_RM = a_RP · b_DM over D, for the first `width` columns.
inline void scores(const float* a_RP, const float* b_DM, int64_t D, int64_t P, int64_t M, int64_t width, float* s_RM) {
  for (int64_t m = 0; m < width; m += kLanes) {
    Floats total[kRows] = {};
    for (int64_t d = 0; d < D; d++) {
      Floats b = load(b_DM + d * M + m);
      for (int r = 0; r < kRows; r++) total[r] += a_RP[r * P + d] * b;
    }
    for (int r = 0; r < kRows; r++) store(s_RM + r * M + m, total[r]);
  }
}

// y_RP = p_RM · x_LP over the first `width` rows of x.
inline void weighted(const float* p_RM, const float* x_LP, int64_t P, int64_t M, int64_t width, float* y_RP) {
  for (int64_t d = 0; d < P; d += kTile) {
    Floats low[kRows] = {}, high[kRows] = {};
    for (int64_t l = 0; l < width; l++) {
      Floats a = load(x_LP + l * P + d), b = load(x_LP + l * P + d + kLanes);
      for (int r = 0; r < kRows; r++) {
        low[r] += p_RM[r * M + l] * a;
        high[r] += p_RM[r * M + l] * b;
      }
    }
    for (int r = 0; r < kRows; r++) {
      store(y_RP + r * P + d, low[r]);
      store(y_RP + r * P + d + kLanes, high[r]);
    }
  }
}

// y_LP += p_RMᵀ · x_RP for the first `width` rows of y.
inline void spread(const float* p_RM, const float* x_RP, int64_t P, int64_t M, int64_t width, float* y_LP) {
  for (int64_t d = 0; d < P; d += kTile) {
    Floats low[kRows], high[kRows];
    for (int r = 0; r < kRows; r++) {
      low[r] = load(x_RP + r * P + d);
      high[r] = load(x_RP + r * P + d + kLanes);
    }
    for (int64_t l = 0; l < width; l++) {
      Floats a = load(y_LP + l * P + d), b = load(y_LP + l * P + d + kLanes);
      for (int r = 0; r < kRows; r++) {
        a += p_RM[r * M + l] * low[r];
        b += p_RM[r * M + l] * high[r];
      }
      store(y_LP + l * P + d, a);
      store(y_LP + l * P + d + kLanes, b);
    }
  }
}

// --- experts ---------------------------------------------------------------------------------------------------------

template <class T>
void gather(const float* x_NC, const int64_t* assignment_S, int64_t K, int64_t S, int64_t C, T* x_SC) {
#pragma omp parallel for schedule(static)
  for (int64_t s = 0; s < S; s++) {
    const int64_t a = assignment_S[s];
    if (a < 0) std::fill_n(x_SC + s * C, C, T{0});
    for (int64_t c = 0; a >= 0 && c < C; c += kLanes)
      part(x_SC + s * C, c, C).set(part(const_cast<float*>(x_NC) + a / K * C, c, C).get());
  }
}

template <class T>
void swiglu(T* h_SJ, int64_t S, int64_t I, T* y_SI) {
#pragma omp parallel for schedule(static)
  for (int64_t s = 0; s < S; s++)
    for (int64_t i = 0; i < I; i += kLanes) {
      const Floats gate = part(h_SJ + s * 2 * I, i, I).get(), up = part(h_SJ + s * 2 * I + I, i, I).get();
      part(y_SI + s * I, i, I).set(gate * sigmoid(gate) * up);
    }
}

template <class T>
void swiglu_backward(T* grad_SI, T* h_SJ, int64_t S, int64_t I, T* grad_SJ, T* y_SI) {
#pragma omp parallel for schedule(static)
  for (int64_t s = 0; s < S; s++)
    for (int64_t i = 0; i < I; i += kLanes) {
      const Floats gate = part(h_SJ + s * 2 * I, i, I).get(), up = part(h_SJ + s * 2 * I + I, i, I).get();
      const Floats grad = part(grad_SI + s * I, i, I).get(), share = sigmoid(gate), silu = gate * share;
      if (y_SI) part(y_SI + s * I, i, I).set(silu * up);
      part(grad_SJ + s * 2 * I, i, I).set(grad * up * (share + silu * (1.0f - share)));
      part(grad_SJ + s * 2 * I + I, i, I).set(grad * silu);
    }
}

template <class T>
void combine(T* y_SC, const int64_t* place_NK, const float* weight_NK, int64_t N, int64_t K, int64_t C, float* y_NC) {
#pragma omp parallel for schedule(static)
  for (int64_t n = 0; n < N; n++)
    for (int64_t c = 0; c < C; c += kLanes) {
      Floats total = {};
      for (int64_t k = 0; k < K; k++) {
        const Floats y = part(y_SC + place_NK[n * K + k] * C, c, C).get();
        total += weight_NK ? y * weight_NK[n * K + k] : y;
      }
      part(y_NC + n * C, c, C).set(total);
    }
}

template <class T>
void combine_backward(float* grad_NC, T* y_SC, const int64_t* assignment_S, const float* weight_NK, int64_t K, int64_t S,
                      int64_t C, T* grad_SC, float* grad_weight_NK) {
#pragma omp parallel for schedule(static)
  for (int64_t s = 0; s < S; s++) {
    const int64_t a = assignment_S[s];
    if (a < 0) {
      std::fill_n(grad_SC + s * C, C, T{0});
      continue;
    }
    Floats dot = {};
    for (int64_t c = 0; c < C; c += kLanes) {
      const Floats grad = part(grad_NC + a / K * C, c, C).get();
      dot += grad * part(y_SC + s * C, c, C).get();
      part(grad_SC + s * C, c, C).set(grad * weight_NK[a]);
    }
    grad_weight_NK[a] = sum(dot);
  }
}

}  // namespace

extern "C" {

// As many threads as torch has. Clang's runtime is another one than torch's: its threads would wait for work for 200 ms,
// on the cores that torch's threads need meanwhile.
void use_threads(int64_t n) {
#ifdef _OPENMP
  omp_set_num_threads(static_cast<int>(n));
#ifdef __clang__
  kmp_set_blocktime(0);
#endif
#endif
}

// y [B, T, H, D] and logsumexp [B, T, H] of qkv [B, T, H + 2G, D]; cos and sin [B, T, D]; norm weights [D] or null.
void attention_forward(const float* qkv, const float* cos_ND, const float* sin_ND, const float* norm_q, const float* norm_k,
                       float eps, const int64_t* begin_BT, int64_t B, int64_t T, int64_t H, int64_t G, int64_t D, float* y,
                       float* logsumexp) {
  const auto work = items(begin_BT, B, T, G);
  const int64_t P = rounded(D, kTile), row = (H + 2 * G) * D, heads = H / G;
  const float scale = 1 / std::sqrt(static_cast<float>(D));
  const Rotary rotary{cos_ND, sin_ND, D, eps};
#pragma omp parallel
  {
    std::vector<float> room;
#pragma omp for schedule(dynamic)
    for (size_t i = 0; i < work.size(); i++) {
      const auto [first, L, g] = work[i];
      const int64_t M = rounded(L, kLanes);
      room.assign(2 * L * P + D * M + kRows * (M + 2 * P), 0.0f);
      float *k_LP = room.data(), *v_LP = k_LP + L * P, *k_DM = v_LP + L * P;
      float *s_RM = k_DM + D * M, *q_RP = s_RM + kRows * M, *y_RP = q_RP + kRows * P;
      const float* keys = qkv + first * row + (H + g) * D;
      rotary.keys_and_values(keys, keys + G * D, norm_k, first, L, row, P, k_LP, v_LP);
      transposed(k_LP, L, P, D, M, k_DM);
      for (int64_t h = g * heads; h < (g + 1) * heads; h++)
        for (int64_t l0 = 0; l0 < L; l0 += kRows) {
          const int64_t rows = std::min(kRows, L - l0), width = rounded(l0 + rows, kLanes);
          for (int64_t r = 0; r < rows; r++)
            rotary.forward(qkv + (first + l0 + r) * row + h * D, norm_q, first + l0 + r, q_RP + r * P);
          scores(q_RP, k_DM, D, P, M, width, s_RM);
          float sums[kRows], most[kRows];
          for (int64_t r = 0; r < rows; r++) {
            float* s = s_RM + r * M;
            std::fill(s + l0 + r + 1, s + width, -INFINITY);
            Floats top = load(s);
            for (int64_t m = kLanes; m < width; m += kLanes) top = larger(load(s + m), top);
            most[r] = largest(top) * scale;
            Floats total = {};
            for (int64_t m = 0; m < width; m += kLanes) {
              Floats x = load(s + m), p = exponential(x * scale - most[r]);
              p = x == -INFINITY ? Floats{} : p;
              store(s + m, p);
              total += p;
            }
            sums[r] = sum(total);
          }
          weighted(s_RM, v_LP, P, M, l0 + rows, y_RP);
          for (int64_t r = 0; r < rows; r++) {
            const int64_t n = first + l0 + r;
            for (int64_t d = 0; d < D; d++) y[(n * H + h) * D + d] = y_RP[r * P + d] / sums[r];
            logsumexp[n * H + h] = most[r] + std::log(sums[r]);
          }
        }
    }
  }
}

// Gradients of qkv and of the norms' weights ([D] each, where there are norms).
void attention_backward(const float* grad, const float* qkv, const float* cos_ND, const float* sin_ND, const float* norm_q,
                        const float* norm_k, float eps, const int64_t* begin_BT, const float* y, const float* logsumexp,
                        int64_t B, int64_t T, int64_t H, int64_t G, int64_t D, float* grad_qkv, float* grad_norm_q,
                        float* grad_norm_k) {
  const auto work = items(begin_BT, B, T, G);
  const int64_t P = rounded(D, kTile), row = (H + 2 * G) * D, heads = H / G;
  const float scale = 1 / std::sqrt(static_cast<float>(D));
  const Rotary rotary{cos_ND, sin_ND, D, eps};
  std::vector<float> grad_norms(work.size() * 2 * D, 0.0f);  // each item's own, so that the sum's order is fixed
#pragma omp parallel
  {
    std::vector<float> room;
#pragma omp for schedule(dynamic)
    for (size_t i = 0; i < work.size(); i++) {
      const auto [first, L, g] = work[i];
      const int64_t M = rounded(L, kLanes);
      float *to_norm_q = grad_norms.data() + i * 2 * D, *to_norm_k = to_norm_q + D;
      room.assign(4 * L * P + 2 * D * M + kRows * (2 * M + 4 * P), 0.0f);
      float *k_LP = room.data(), *v_LP = k_LP + L * P, *grad_k_LP = v_LP + L * P, *grad_v_LP = grad_k_LP + L * P;
      float *k_DM = grad_v_LP + L * P, *v_DM = k_DM + D * M, *p_RM = v_DM + D * M, *grad_s_RM = p_RM + kRows * M;
      float *q_RP = grad_s_RM + kRows * M, *grad_y_RP = q_RP + kRows * P, *grad_q_RP = grad_y_RP + kRows * P;
      const float* keys = qkv + first * row + (H + g) * D;
      rotary.keys_and_values(keys, keys + G * D, norm_k, first, L, row, P, k_LP, v_LP);
      transposed(k_LP, L, P, D, M, k_DM);
      transposed(v_LP, L, P, D, M, v_DM);
      for (int64_t h = g * heads; h < (g + 1) * heads; h++)
        for (int64_t l0 = 0; l0 < L; l0 += kRows) {
          const int64_t rows = std::min(kRows, L - l0), end = l0 + rows, width = rounded(end, kLanes);
          if (rows < kRows) std::fill(q_RP, q_RP + 2 * kRows * P, 0.0f);  // the last rows add nothing
          float along[kRows] = {};
          for (int64_t r = 0; r < rows; r++) {
            const int64_t n = first + l0 + r;
            rotary.forward(qkv + n * row + h * D, norm_q, n, q_RP + r * P);
            float dot = 0;
            for (int64_t d = 0; d < D; d++) {
              grad_y_RP[r * P + d] = grad[(n * H + h) * D + d];
              dot += grad[(n * H + h) * D + d] * y[(n * H + h) * D + d];
            }
            along[r] = dot;
          }
          scores(q_RP, k_DM, D, P, M, width, p_RM);
          scores(grad_y_RP, v_DM, D, P, M, width, grad_s_RM);
          for (int64_t r = 0; r < rows; r++) {
            float *p = p_RM + r * M, *grad_s = grad_s_RM + r * M;
            std::fill(p + l0 + r + 1, p + width, -INFINITY);
            const float less = logsumexp[(first + l0 + r) * H + h];
            for (int64_t m = 0; m < width; m += kLanes) {
              Floats x = load(p + m), each = exponential(x * scale - less);
              each = x == -INFINITY ? Floats{} : each;
              store(p + m, each);
              store(grad_s + m, each * (load(grad_s + m) - along[r]) * scale);
            }
          }
          for (int64_t r = rows; r < kRows; r++) {
            std::fill(p_RM + r * M, p_RM + r * M + width, 0.0f);
            std::fill(grad_s_RM + r * M, grad_s_RM + r * M + width, 0.0f);
          }
          weighted(grad_s_RM, k_LP, P, M, end, grad_q_RP);
          spread(grad_s_RM, q_RP, P, M, end, grad_k_LP);
          spread(p_RM, grad_y_RP, P, M, end, grad_v_LP);
          for (int64_t r = 0; r < rows; r++) {
            const int64_t n = first + l0 + r, at = n * row + h * D;
            rotary.backward(grad_q_RP + r * P, qkv + at, norm_q, n, grad_qkv + at, to_norm_q);
          }
        }
      for (int64_t l = 0; l < L; l++) {
        const int64_t n = first + l, at = n * row + (H + g) * D;
        rotary.backward(grad_k_LP + l * P, qkv + at, norm_k, n, grad_qkv + at, to_norm_k);
        std::copy_n(grad_v_LP + l * P, D, grad_qkv + at + G * D);
      }
    }
  }
  for (size_t i = 0; norm_q && i < work.size(); i++)
    for (int64_t d = 0; d < D; d++) {
      grad_norm_q[d] += grad_norms[i * 2 * D + d];
      grad_norm_k[d] += grad_norms[i * 2 * D + D + d];
    }
}

// Where each assignment of a token to an expert stands among rows sorted by expert, each expert's rounded up to `rows`:
// place_NK; the other way assignment_S (n · K + k, or -1 for a row that is none); where each expert's rows begin and the
// last one's end, begin of E + 1; and how many are its own.
void dispatch(const int64_t* index_NK, int64_t N, int64_t K, int64_t E, int64_t rows, int64_t S, int64_t* place_NK,
              int64_t* assignment_S, int64_t* begin, int64_t* count_E) {
  std::fill_n(count_E, E, 0);
  for (int64_t a = 0; a < N * K; a++) count_E[index_NK[a]]++;
  begin[0] = 0;
  for (int64_t e = 0; e < E; e++) begin[e + 1] = begin[e] + rounded(count_E[e], rows);
  std::fill_n(assignment_S, S, -1);
  std::vector<int64_t> next(begin, begin + E);
  for (int64_t a = 0; a < N * K; a++) assignment_S[place_NK[a] = next[index_NK[a]]++] = a;
}

// In what follows, rows are in bfloat16 if `bfloat16` says so, else in float32, and S of them are read or written.

void gather_rows(int32_t bfloat16, const float* x_NC, const int64_t* assignment_S, int64_t K, int64_t S, int64_t C,
                 void* x_SC) {
  if (bfloat16) gather(x_NC, assignment_S, K, S, C, static_cast<uint16_t*>(x_SC));
  else gather(x_NC, assignment_S, K, S, C, static_cast<float*>(x_SC));
}

// y = silu(gate) · up.
void swiglu_forward(int32_t bfloat16, void* h_SJ, int64_t S, int64_t I, void* y_SI) {
  if (bfloat16) swiglu(static_cast<uint16_t*>(h_SJ), S, I, static_cast<uint16_t*>(y_SI));
  else swiglu(static_cast<float*>(h_SJ), S, I, static_cast<float*>(y_SI));
}

// The gradient of h, and y once more unless it is null.
void swiglu_gradient(int32_t bfloat16, void* grad_SI, void* h_SJ, int64_t S, int64_t I, void* grad_SJ, void* y_SI) {
  typedef uint16_t H;
  if (bfloat16)
    swiglu_backward(static_cast<H*>(grad_SI), static_cast<H*>(h_SJ), S, I, static_cast<H*>(grad_SJ), static_cast<H*>(y_SI));
  else
    swiglu_backward(static_cast<float*>(grad_SI), static_cast<float*>(h_SJ), S, I, static_cast<float*>(grad_SJ),
                    static_cast<float*>(y_SI));
}

// y of each token: the sum over its assignments, by weight unless that is null.
void combine_rows(int32_t bfloat16, void* y_SC, const int64_t* place_NK, const float* weight_NK, int64_t N, int64_t K,
                  int64_t C, float* y_NC) {
  if (bfloat16) combine(static_cast<uint16_t*>(y_SC), place_NK, weight_NK, N, K, C, y_NC);
  else combine(static_cast<float*>(y_SC), place_NK, weight_NK, N, K, C, y_NC);
}

// Gradients of y_SC (0 for a row that is none) and of the weights.
void combine_gradient(int32_t bfloat16, float* grad_NC, void* y_SC, const int64_t* assignment_S, const float* weight_NK,
                      int64_t K, int64_t S, int64_t C, void* grad_SC, float* grad_weight_NK) {
  typedef uint16_t H;
  if (bfloat16)
    combine_backward(grad_NC, static_cast<H*>(y_SC), assignment_S, weight_NK, K, S, C, static_cast<H*>(grad_SC),
                     grad_weight_NK);
  else
    combine_backward(grad_NC, static_cast<float*>(y_SC), assignment_S, weight_NK, K, S, C, static_cast<float*>(grad_SC),
                     grad_weight_NK);
}

// logits [N, V], float32 or bfloat16, become softmax - 1 at the target (0 where the target is negative); loss [N].
void cross_entropy(void* logits, int32_t bfloat16, const int64_t* target_N, int64_t N, int64_t V, float* loss_N) {
  const int64_t whole = V / kLanes * kLanes;
#pragma omp parallel
  {
    std::vector<float> room(rounded(V, kLanes));
#pragma omp for schedule(static)
    for (int64_t n = 0; n < N; n++) {
      float *x = room.data(), *floats = static_cast<float*>(logits) + n * V;
      uint16_t* halves = static_cast<uint16_t*>(logits) + n * V;
      const int64_t target = target_N[n];
      if (target < 0) {
        loss_N[n] = 0;
        if (bfloat16) std::fill_n(halves, V, uint16_t{0});
        else std::fill_n(floats, V, 0.0f);
        continue;
      }
      if (target >= V) {  // no such row; what is not finite is left out by the step
        loss_N[n] = NAN;
        if (bfloat16) std::fill_n(halves, V, uint16_t{0x7fc0});
        else std::fill_n(floats, V, NAN);
        continue;
      }
      std::fill(room.begin() + whole, room.end(), -INFINITY);
      Floats top = all(-INFINITY);
      for (int64_t v = 0; v < whole; v += kLanes) {
        Floats each = bfloat16 ? from_bfloat16(halves + v) : load(floats + v);
        store(x + v, each);
        top = larger(each, top);
      }
      for (int64_t v = whole; v < V; v++) {
        uint32_t bits = static_cast<uint32_t>(halves[v]) << 16;
        if (bfloat16) std::memcpy(x + v, &bits, sizeof bits);
        else x[v] = floats[v];
      }
      for (int64_t v = whole; v < V; v += kLanes) top = larger(load(x + v), top);
      const float most = largest(top), mine = x[target];
      Floats total = {};
      for (size_t v = 0; v < room.size(); v += kLanes) {
        Floats each = load(x + v), p = exponential(each - most);
        p = each == -INFINITY ? Floats{} : p;
        store(x + v, p);
        total += p;
      }
      const float all_of_it = sum(total), share = 1 / all_of_it;
      loss_N[n] = most + std::log(all_of_it) - mine;
      x[target] -= all_of_it;
      for (int64_t v = 0; v < whole; v += kLanes) {
        if (bfloat16) to_bfloat16(halves + v, load(x + v) * share);
        else store(floats + v, load(x + v) * share);
      }
      if (whole < V) {
        uint16_t last[kLanes];
        Floats rest = load(x + whole) * share;
        to_bfloat16(last, rest);
        for (int64_t v = whole; v < V; v++) {
          if (bfloat16) halves[v] = last[v - whole];
          else floats[v] = rest[v - whole];
        }
      }
    }
  }
}

// y = x / rms(x) · weight of N rows of C, and each row's 1 / rms.
void rms_norm_forward(const float* x_NC, const float* weight_C, float eps, int64_t N, int64_t C, float* y_NC, float* scale_N) {
#pragma omp parallel for schedule(static)
  for (int64_t n = 0; n < N; n++) {
    const float* x = x_NC + n * C;
    float squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t c = 0; c < C; c++) squares += x[c] * x[c];
    const float scale = scale_N[n] = 1 / std::sqrt(squares / C + eps);
#pragma omp simd
    for (int64_t c = 0; c < C; c++) y_NC[n * C + c] = x[c] * scale * weight_C[c];
  }
}

void rms_norm_backward(const float* grad_NC, const float* x_NC, const float* weight_C, const float* scale_N, int64_t N,
                       int64_t C, float* grad_x_NC, float* grad_weight_C) {
  std::vector<float> parts;
#pragma omp parallel
  {
    int64_t thread = 0;
#ifdef _OPENMP
    thread = omp_get_thread_num();
#pragma omp single
    parts.assign(omp_get_num_threads() * C, 0.0f);
#else
    parts.assign(C, 0.0f);
#endif
    float* mine_C = parts.data() + thread * C;
#pragma omp for schedule(static)
    for (int64_t n = 0; n < N; n++) {
      const float *x = x_NC + n * C, *grad = grad_NC + n * C, scale = scale_N[n];
      float along = 0;
#pragma omp simd reduction(+ : along)
      for (int64_t c = 0; c < C; c++) {
        mine_C[c] += grad[c] * x[c] * scale;
        along += grad[c] * weight_C[c] * x[c];
      }
      along *= scale * scale / C;
#pragma omp simd
      for (int64_t c = 0; c < C; c++) grad_x_NC[n * C + c] = scale * (grad[c] * weight_C[c] - x[c] * along);
    }
  }
  for (size_t i = 0; i < parts.size(); i++) grad_weight_C[i % C] += parts[i];
}
}
