// One step of AdamP or SGDP for a list of tensors on the CPU: the arithmetic of adamp/projection.py, adamp.py and
// sgdp.py in blocks that stay in a cache. Plain C++17 without torch's headers, compiled by cpu_build.py, called by cpu.py.
//
// A tensor's updates run over its chunks backwards: they begin with the data that the statistics have left in the cache.
#include "step.h"

#include <atomic>
#include <thread>

namespace {

// Run work(0) .. work(count - 1), in this order on one thread.
template <class Work> void run(const Options& o, int64_t count, const Work& work) {
  struct Shared { std::atomic<int64_t> next{0}; int64_t count; const Work& work; } shared{{0}, count, work};
  const auto body = [](void* data) {
    auto& s = *static_cast<Shared*>(data);
    for (int64_t i; (i = s.next.fetch_add(1, std::memory_order_relaxed)) < s.count;) s.work(i);
  };
  const int64_t threads = std::min(o.threads, count);
  if (threads < 2) {
    for (int64_t i = 0; i < count; ++i) work(i);
  } else if (o.parallel) {
    o.parallel(body, &shared, unsigned(threads), 0);
  } else {
    std::vector<std::thread> others;
    for (int64_t i = 1; i < threads; ++i) others.emplace_back(body, &shared);
    body(&shared);
    for (auto& other : others) other.join();
  }
}

constexpr int64_t CHUNK = 32;       // blocks per work item of a thread
constexpr int64_t SMALL = 1 << 16;  // a tensor up to this size is stepped by one thread
constexpr int64_t GROUP = 1 << 20;  // larger ones are stepped in groups whose w and g (8 MB in float32) stay in a cache

template <class Visit> void for_chunks(const Plan& plan, bool backwards, const Visit& visit) {
  const int64_t chunks = (plan.blocks + CHUNK - 1) / CHUNK;
  for (int64_t i = 0; i < chunks; ++i) {
    const int64_t first = (backwards ? chunks - 1 - i : i) * CHUNK;
    visit(first, std::min(first + CHUNK, plan.blocks));
  }
}

void step_alone(Plan& plan) {
  const auto go = [&](Phase phase, bool backwards) {
    for_chunks(plan, backwards, [&](int64_t first, int64_t last) {
      for (int64_t b = first; b < last; ++b) phase(plan, b);
    });
  };
  // Scale-invariance test (eq. 11)
  plan.prepare();
  if (plan.t.mode == AUTO) go(plan.phases.stats, false);
  plan.decide();
  // Radial part of a whole tensor or of long rows (eq. 10)
  if (plan.needs_dots()) {
    go(plan.phases.dots, true);
    plan.set_coefficients();
  }
  // Moments, projection, decay and step
  go(plan.phases.apply, !plan.needs_dots());
  plan.sums = {};
}

struct Work {
  Plan* plan;
  Phase phase;  // null: the whole step of a tensor
  int64_t first, last;
};

struct Works : std::vector<Work> {
  void add(Plan& plan, Phase phase, bool backwards) {
    for_chunks(plan, backwards, [&](int64_t first, int64_t last) { push_back({&plan, phase, first, last}); });
  }
  void finish(const Options& o) {
    run(o, int64_t(size()), [&](int64_t i) {
      const Work& work = (*this)[i];
      if (!work.phase) step_alone(*work.plan);
      for (int64_t b = work.first; b < work.last; ++b) work.phase(*work.plan, b);
    });
    clear();
  }
};

// Threads synchronise once per group: the updates of one group run together with the statistics of the next.
void step_all(std::vector<Plan>& plans, const Options& o) {
  std::vector<Plan*> small, large;
  for (Plan& plan : plans) (o.threads < 2 || plan.size() <= SMALL ? small : large).push_back(&plan);
  Works works, dots;
  for (size_t begin = 0, end = 0; begin < large.size(); begin = end) {
    for (int64_t size = 0; end < large.size() && (end == begin || size + large[end]->size() <= GROUP); ++end)
      size += large[end]->size();
    for (size_t i = begin; i < end; ++i) {
      large[i]->prepare();
      if (large[i]->t.mode == AUTO) works.add(*large[i], large[i]->phases.stats, false);
    }
    works.finish(o);
    for (size_t i = begin; i < end; ++i) {
      large[i]->decide();
      if (large[i]->needs_dots()) dots.add(*large[i], large[i]->phases.dots, true);
    }
    dots.finish(o);
    for (size_t i = end; i-- > begin;) {
      if (large[i]->needs_dots()) large[i]->set_coefficients();
      works.add(*large[i], large[i]->phases.apply, !large[i]->needs_dots());
    }
  }
  for (Plan* plan : small) works.push_back({plan, nullptr, 0, 0});
  works.finish(o);
}

template <template <class> class Rule, int MOMENTS> Phases phases_of(int64_t dtype) {
  switch (dtype) {
    case FLOAT32: return Kernel<float, Rule, MOMENTS>::phases();
    case FLOAT64: return Kernel<double, Rule, MOMENTS>::phases();
    case BFLOAT16: return Kernel<bfloat16, Rule, MOMENTS>::phases();
    default: return Kernel<float16, Rule, MOMENTS>::phases();
  }
}

template <template <class> class Rule, int MOMENTS> void step(int64_t count, const Tensor* tensors, const Options& o) {
  std::vector<Plan> plans;
  plans.reserve(count);
  for (const Tensor* t = tensors; t < tensors + count; ++t) {
    if (t->step) *t->step += 1;
    plans.emplace_back(*t, o, phases_of<Rule, MOMENTS>(t->dtype));
  }
  step_all(plans, o);
}

}  // namespace

extern "C" {
void adamp_step(int64_t count, const Tensor* tensors, const Options* o) { step<AdamRule, 2>(count, tensors, *o); }
void sgdp_step(int64_t count, const Tensor* tensors, const Options* o) {
  (o->moments ? step<SgdRule, 1> : step<SgdRule, 0>)(count, tensors, *o);
}
}
