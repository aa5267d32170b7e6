// One step of one tensor, in blocks: the options of cpu.py, update rules, decision, projection and update.
//
// Notation: R rows (output channels), C entries per row, w weight, g gradient, u update, m and v the moments of AdamP;
// m is SGDP's momentum buffer. T is the type in memory, A the type of the arithmetic: float, or double for double.
//
// (1) stats: w.g, w.w, g.g of each row, which decide; (2) dots: w.u, only where it must be known before the first
// weight changes (a whole tensor or a very long row is projected); (3) apply: moments, update, weight.
//
// Sums are computed per block of fixed size and added in the order of the blocks, so that results do not depend on the
// number of threads.
#pragma once

#include "simd.h"

#include <vector>

namespace {

// ---------------------------------------------------------------------------------------------- shared with cpu.py

enum Dtype : int64_t { FLOAT32, FLOAT64, BFLOAT16, FLOAT16 };
enum Mode : int64_t { NEVER, AUTO, ALWAYS };

struct Tensor {
  void* weight;
  const void* grad;
  void* first;   // exp_avg, momentum_buffer or null
  void* second;  // exp_avg_sq or null
  float* step;   // AdamP: number of steps before this one
  int64_t rows, cols;
  int64_t dtype, mode;
};

struct Options {
  double lr, decay;  // decay: lr * weight_decay, for SGDP / (1 - momentum)
  double beta1, beta2;  // SGDP: momentum, 1 - dampening
  double eps, delta, wd_ratio;
  double grad_factor;  // factor of every gradient: -1 to maximize, over the scale of the gradients
  int64_t nesterov, project_buffer;
  int64_t moments;  // SGDP: 1, without momentum 0; AdamP: 2
  int64_t threads;
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned);  // GOMP_parallel of the runtime torch uses, or null
};

// ----------------------------------------------------------------------------------------------------- update rules

// Adam's corrections of the bias of both moments after t steps.
struct Correction {
  double root, step_size;
  Correction(const Options& o, const float* step)
      : root(step ? 1 / std::sqrt(1 - std::pow(o.beta2, double(*step))) : 1),
        step_size(step ? 1 / (1 - std::pow(o.beta1, double(*step))) : 1) {}
};

// `first` and `second` are the moments of one entry after this step, `update` is its update with these.
template <class A> struct AdamRule {
  A beta1, one_minus_beta1, beta2, one_minus_beta2, inverse_root, eps;
  bool nesterov;
  double step_size;
  AdamRule(const Options& o, const Correction& c)
      : beta1(A(o.beta1)), one_minus_beta1(A(1 - o.beta1)), beta2(A(o.beta2)), one_minus_beta2(A(1 - o.beta2)),
        inverse_root(A(c.root)), eps(A(o.eps)), nesterov(o.nesterov), step_size(o.lr * c.step_size) {}
  Lanes<A> first(Lanes<A> x, Lanes<A> m) const { return m * beta1 + x * one_minus_beta1; }
  Lanes<A> second(Lanes<A> x, Lanes<A> v) const { return v * beta2 + x * x * one_minus_beta2; }
  Lanes<A> update(Lanes<A> x, Lanes<A> m, Lanes<A> v) const {
    return (nesterov ? first(x, m) : m) / (root(v) * inverse_root + eps);
  }
};

template <class A> struct SgdRule {
  A momentum, one_minus_dampening;
  bool nesterov;
  double step_size;
  SgdRule(const Options& o, const Correction&)
      : momentum(A(o.beta1)), one_minus_dampening(A(o.beta2)), nesterov(o.nesterov), step_size(o.lr) {}
  Lanes<A> first(Lanes<A> x, Lanes<A> m) const { return m * momentum + x * one_minus_dampening; }
  Lanes<A> second(Lanes<A>, Lanes<A> v) const { return v; }
  Lanes<A> update(Lanes<A> x, Lanes<A> m, Lanes<A>) const { return nesterov ? x + m * momentum : m; }
};

// ------------------------------------------------------------------------------------------------- one tensor's step

constexpr int64_t BLOCK = 1024;  // entries of the blocks of several rows: w and u of one stay in the first cache
constexpr int64_t LONG_ROW = 16384;  // longer rows are cut

// NaN where an argument is NaN, which fails every test.
inline double cosine(double wg, double ww, double gg, double eps) {
  const double w = std::sqrt(ww), g = std::sqrt(gg);
  return std::fabs(wg) / (w < eps ? eps : w) / (g < eps ? eps : g);
}
inline double radial(double wu, double ww, double eps) {  // c in u - c w
  const double norm = std::sqrt(ww) + eps;
  return ww == 0 ? 0 : wu / (norm * norm);
}

struct Sums {
  double wg = 0, ww = 0, gg = 0, wu = 0;
  int64_t failed = 0;  // rows that are not orthogonal to their gradient
  void operator+=(const Sums& x) { wg += x.wg, ww += x.ww, gg += x.gg, wu += x.wu, failed += x.failed; }
};

enum Decision { NONE, ROWS, WHOLE, LONG_ROWS };

struct Block { int64_t start, rows, cols, row; };

struct Plan;
using Phase = void (*)(Plan&, int64_t);
struct Phases { Phase stats, dots, apply; };  // each for one block

struct Plan {
  const Tensor& t;
  const Options& o;
  Phases phases;
  Correction correction;
  int64_t pieces, rows_per_block, blocks;
  std::vector<Sums> sums;            // of each block
  std::vector<double> coefficients;  // c in u - c w: of the tensor (WHOLE) or of each row (LONG_ROWS)
  Decision decision = NONE;

  Plan(const Tensor& tensor, const Options& options, const Phases& block_phases)
      : t(tensor), o(options), phases(block_phases), correction(options, tensor.step) {
    pieces = (t.cols + LONG_ROW - 1) / LONG_ROW;
    rows_per_block = pieces > 1 ? 1 : std::max<int64_t>(1, BLOCK / std::max<int64_t>(1, t.cols));
    blocks = t.cols ? (t.rows + rows_per_block - 1) / rows_per_block * pieces : 0;
  }
  void prepare() {
    if (t.mode != NEVER) sums.resize(blocks);
  }
  int64_t size() const { return t.rows * t.cols; }
  Block block(int64_t b) const {
    const int64_t row = b / pieces * rows_per_block, column = b % pieces * LONG_ROW;
    return {row * t.cols + column, std::min(rows_per_block, t.rows - row), std::min(LONG_ROW, t.cols - column), row};
  }
  bool is_orthogonal(const Sums& x, int64_t length) const {
    return cosine(x.wg, x.ww, x.gg, o.eps) < o.delta / std::sqrt(double(length));
  }
  void decide() {
    if (t.mode != AUTO) {
      decision = t.mode == NEVER ? NONE : pieces > 1 ? LONG_ROWS : ROWS;
      return;
    }
    Sums whole;
    for (int64_t b = 0; b < blocks; b += pieces) {
      Sums row;
      for (int64_t p = b; p < b + pieces; ++p) row += sums[p];
      if (pieces > 1) row.failed = !is_orthogonal(row, t.cols);
      whole += row;
    }
    if (whole.failed == 0) decision = pieces > 1 ? LONG_ROWS : ROWS;
    else if (is_orthogonal(whole, size())) decision = WHOLE;
  }
  double precomputed_coefficient(const Block& block) const {  // c, unless it is computed from the block itself
    return coefficients.empty() ? 0 : coefficients[decision == LONG_ROWS ? block.row : 0];
  }
  bool needs_dots() const { return decision == WHOLE || decision == LONG_ROWS; }
  void set_coefficients() {
    const int64_t step = decision == WHOLE ? blocks : pieces;
    for (int64_t b = 0; b < blocks; b += step) {
      Sums part;
      for (int64_t p = b; p < b + step; ++p) part += sums[p];
      coefficients.push_back(radial(part.wu, part.ww, o.eps));
    }
  }
};

// w <- w - (step_size (u - c w) + decay w); project: u <- u - c w as well.
template <class A>
void apply_update(A* __restrict w, A* __restrict u, int64_t n, A step_size, A decay, A c, bool project) {
  if (project)
    for (int64_t i = 0; i < n; ++i) u[i] -= c * w[i];
  const A factor = decay - (project ? 0 : step_size * c);
  if (factor == 0)  // 0 times an infinite weight would be NaN
    for (int64_t i = 0; i < n; ++i) w[i] -= step_size * u[i];
  else
    for (int64_t i = 0; i < n; ++i) w[i] -= step_size * u[i] + factor * w[i];
}

enum Sweep {
  DOTS,     // w.u and w.w, writes nothing
  UPDATES,  // the same, writes moments and u
  DESCENT,  // writes moments and w
};

template <class T, template <class> class RuleOf, int MOMENTS> struct Kernel {
  using A = Arithmetic<T>;
  using Rule = RuleOf<A>;
  const Plan& plan;
  const Rule rule;
  const Block block;
  const int64_t n;
  A *w, *g, *m, *v, *u;

  Kernel(const Plan& p, int64_t b)
      : plan(p), rule(p.o, p.correction), block(p.block(b)), n(block.rows * block.cols) {
    thread_local std::vector<A> memory(5 * LONG_ROW + 64 / sizeof(A));
    A* space = reinterpret_cast<A*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64);  // to a cache line
    w = open(static_cast<T*>(plan.t.weight) + block.start, n, space);
    g = open(static_cast<const T*>(plan.t.grad) + block.start, n, space + LONG_ROW);
    u = space + 2 * LONG_ROW;
  }
  void open_moments() {
    if (MOMENTS > 0) m = open(static_cast<T*>(plan.t.first) + block.start, n, u + LONG_ROW);
    if (MOMENTS > 1) v = open(static_cast<T*>(plan.t.second) + block.start, n, u + 2 * LONG_ROW);
  }
  static double* rows_space() {  // three numbers per row
    thread_local std::vector<double> space(3 * BLOCK);
    return space.data();
  }

  // Constants of a sweep, for the compiler to keep in registers.
  struct Constants { Rule rule; A grad_factor, step_size, factor; };

  // One vector from entry i of the block or, with ALL false, the first `left` entries of one.
  template <Sweep KIND, bool ALL>
  void advance(const Constants& k, int64_t i, int64_t left, Lanes<A>& wu, Lanes<A>& ww) const {
    const Lanes<A> x = get<ALL>(g + i, left, g + n) * k.grad_factor, y = get<ALL>(w + i, left, w + n);
    Lanes<A> first{}, second{};
    if (MOMENTS > 0) first = get<ALL>(m + i, left, m + n);
    if (MOMENTS > 1) second = get<ALL>(v + i, left, v + n);
    first = k.rule.first(x, first), second = k.rule.second(x, second);
    Lanes<A> update = k.rule.update(x, first, second);
    if (!ALL) update = keep<A>(update, left);  // with eps 0 the others are 0 / 0
    if (KIND != DOTS && MOMENTS > 0) put<ALL>(m + i, first, left);
    if (KIND != DOTS && MOMENTS > 1) put<ALL>(v + i, second, left);
    if (KIND == UPDATES) put<ALL>(u + i, update, left);
    if (KIND != DESCENT) {
      wu += y * update, ww += y * y;
    } else {
      const Lanes<A> step = update * k.step_size;
      put<ALL>(w + i, y - (k.factor == 0 ? step : step + y * k.factor), left);  // 0 times infinity would be NaN
    }
  }

  // Entries start .. start + size of the block; factor multiplies w in a descent.
  template <Sweep KIND> void sweep(int64_t start, int64_t size, A factor, double* wu_sum, double* ww_sum) const {
    constexpr int64_t L = LANES<A>;
    const Kernel k = *this;  // a copy that no store below can change
    const Constants constants{rule, A(plan.o.grad_factor), A(rule.step_size), factor};
    const int64_t end = start + size;
    double sum_wu = 0, sum_ww = 0;
    for (int64_t i = start; i < end;) {
      const int64_t stop = std::min(end, i + FLOAT_RUN);
      Lanes<A> wu0{}, ww0{}, wu1{}, ww1{};  // two chains of additions, or their latency is the time
      for (; i + 2 * L <= stop; i += 2 * L) {
        k.template advance<KIND, true>(constants, i, L, wu0, ww0);
        k.template advance<KIND, true>(constants, i + L, L, wu1, ww1);
      }
      if (i + L <= stop) k.template advance<KIND, true>(constants, i, L, wu0, ww0), i += L;
      if (i < stop) k.template advance<KIND, false>(constants, i, stop - i, wu1, ww1);
      i = stop;
      if (KIND != DESCENT) sum_wu += total(wu0 + wu1), sum_ww += total(ww0 + ww1);
    }
    if (KIND != DESCENT) *wu_sum = sum_wu, *ww_sum = sum_ww;
  }

  static void stats(Plan& plan, int64_t b) {
    const Kernel k(plan, b);
    double* wg = rows_space();
    double *ww = wg + BLOCK, *gg = ww + BLOCK;
    const int64_t rows = k.block.rows, cols = k.block.cols;
    const A grad_factor = A(plan.o.grad_factor);
    const A *w = k.w, *g = k.g;
    for (int64_t r = 0; r < rows; ++r, w += cols, g += cols)
      products(w, g, grad_factor, cols, k.w + k.n, k.g + k.n, wg + r, ww + r, gg + r);
    Sums& sums = plan.sums[b];
    sums.wg = sum(wg, rows), sums.ww = sum(ww, rows), sums.gg = sum(gg, rows);
    if (plan.pieces > 1) return;  // a part of a row is not tested
    const double eps = plan.o.eps, threshold = plan.o.delta / std::sqrt(double(cols));
    for (int64_t r = 0; r < rows; ++r) sums.failed += !(cosine(wg[r], ww[r], gg[r], eps) < threshold);
  }

  static void dots(Plan& plan, int64_t b) {
    Kernel k(plan, b);
    k.open_moments();
    double ww;
    k.template sweep<DOTS>(0, k.n, 0, &plan.sums[b].wu, &ww);
    if (plan.t.mode == ALWAYS) plan.sums[b].ww = ww;
  }

  static void apply(Plan& plan, int64_t b) {
    Kernel k(plan, b);
    k.open_moments();
    const bool fired = plan.decision != NONE, project = MOMENTS > 0 && fired && plan.o.project_buffer;
    const A step_size = A(k.rule.step_size), decay = A(plan.o.decay * (fired ? plan.o.wd_ratio : 1));
    if (plan.decision == ROWS || project) {
      const int64_t cols = k.block.cols;
      double* c = rows_space();
      double *wu = c + BLOCK, *ww = wu + BLOCK;
      const double eps = plan.o.eps, coefficient = plan.precomputed_coefficient(k.block);
      const int64_t rows = k.block.rows;
      for (int64_t i = 0; i < rows; ++i) k.template sweep<UPDATES>(i * cols, cols, 0, wu + i, ww + i);
      for (int64_t i = 0; i < rows; ++i) c[i] = plan.decision == ROWS ? radial(wu[i], ww[i], eps) : coefficient;
      for (int64_t i = 0; i < rows; ++i)
        apply_update(k.w + i * cols, k.u + i * cols, cols, step_size, decay, A(c[i]), project);
      if (project) std::copy(k.u, k.u + k.n, k.m);
    } else {
      const A factor = A(decay - k.rule.step_size * plan.precomputed_coefficient(k.block));
      k.template sweep<DESCENT>(0, k.n, factor, nullptr, nullptr);
    }
    const int64_t start = k.block.start;
    close(static_cast<T*>(plan.t.weight) + start, k.w, k.n);
    if (MOMENTS > 0) close(static_cast<T*>(plan.t.first) + start, k.m, k.n);
    if (MOMENTS > 1) close(static_cast<T*>(plan.t.second) + start, k.v, k.n);
  }

  static Phases phases() { return {stats, dots, apply}; }
};

}  // namespace
