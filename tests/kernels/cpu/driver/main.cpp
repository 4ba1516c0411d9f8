// Tests of the C++ kernels that need nothing else: for sanitizers, and for processors on which Python does not run.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <mutex>
#include <thread>

#include "check_border.h"
#include "check_direct.h"
#include "check_direct_gradient.h"
#include "check_norm.h"
#include "check_norm_backward.h"
#include "check_region.h"
#include "check_sums.h"
#include "check_winograd.h"
#include "check_winograd_gradient.h"

#if defined(__linux__)
// A function of the sanitizers, or null without them.
extern "C" void __sanitizer_set_death_callback(void (*callback)()) __attribute__((weak));
#endif

namespace {

// A check fills the arguments of a function at random, calls it, and checks its results.
struct Check {
    const char* name;
    void (*run)(Case& test);
};

constexpr Check CHECKS[] = {
    {"fcg_norm", norm::check_norm},
    {"fcg_norm_lines", norm::check_norm_lines},
    {"fcg_region_moments", region::check_moments},
    {"fcg_norm_region", region::check_norm},
    {"fcg_norm_backward", norm_backward::check_norm_backward},
    {"fcg_norm_backward_lines", norm_backward::check_norm_backward_lines},
    {"fcg_pad", border::check_pad},
    {"fcg_fold", border::check_fold},
    {"fcg_sum_pixels", sums::check_sum_pixels},
    {"fcg_winograd", winograd::check_winograd},
    {"fcg_winograd_gradient", winograd_gradient::check_winograd_gradient},
    {"fcg_wide", direct::check_wide},
    {"fcg_few", direct::check_few},
    {"fcg_wide_gradient", direct_gradient::check_wide_gradient},
    {"fcg_few_gradient", direct_gradient::check_few_gradient},
    {"fcg_equal", sums::check_equal},
};
constexpr const char* USAGE =
    "usage: driver [--cases N | --seconds S | --case I] [--seed K] [--kernel NAME] [--callers T]\n"
    "Runs N random cases, or as many as begin within S seconds, or number I alone; on T threads at once.\n";

struct Options {
    uint64_t cases = 200, first = 0, seed = 0;
    double seconds = 0;
    int callers = 1;
    const Check* only = nullptr;
};

[[noreturn]] void refuse(const char* problem, const char* value) {
    fprintf(stderr, "driver: %s %s\n%s", problem, value, USAGE);
    exit(2);
}

uint64_t number(const char* text) {
    char* end;
    uint64_t value = strtoull(text, &end, 10);
    if (*text < '0' || *text > '9' || *end) refuse("not a number:", text);
    return value;
}

int callers(const char* text) {
    uint64_t count = number(text);
    if (count < 1 || count > 64) refuse("--callers must be from 1 to 64, got", text);
    return int(count);
}

const Check* check_named(const char* name) {
    for (const Check& check : CHECKS)
        if (!strcmp(check.name, name)) return &check;
    refuse("no such kernel:", name);
}

Options parse(int count, char** words) {
    Options options;
    for (int i = 1; i < count; i += 2) {
        const char *word = words[i], *value = i + 1 < count ? words[i + 1] : nullptr;
        if (!value) refuse("no value for:", word);
        if (!strcmp(word, "--cases"))
            options.cases = number(value);
        else if (!strcmp(word, "--seconds"))
            options.seconds = double(number(value));
        else if (!strcmp(word, "--case"))
            options.first = number(value), options.cases = 1;
        else if (!strcmp(word, "--seed"))
            options.seed = number(value);
        else if (!strcmp(word, "--callers"))
            options.callers = callers(value);
        else if (!strcmp(word, "--kernel"))
            options.only = check_named(value);
        else
            refuse("unknown option:", word);
    }
    return options;
}

// The case that this thread runs; how to run it alone is printed when a sanitizer ends the process.
struct Current {
    const Check* check = nullptr;
    uint64_t seed = 0, number = 0;
    void print() const {
        fprintf(stderr, "driver: repeat with --kernel %s --seed %llu --case %llu\n", check ? check->name : "",
                static_cast<unsigned long long>(seed), static_cast<unsigned long long>(number));
    }
};
Current latest;
std::mutex latest_mutex;

// What all threads have found out.
class Report {
    std::mutex mutex;
    std::set<std::string> called;
    std::vector<uint64_t> digests;
    std::atomic<uint64_t> finished{0};

   public:
    std::atomic<bool> failed{false};

    void pass(uint64_t index, const Case& test) {
        std::lock_guard<std::mutex> lock(mutex);
        finished++;
        called.insert(test.called.begin(), test.called.end());
        if (digests.size() <= index) digests.resize(size_t(index) + 1, 0);
        // Every thread that runs this case must get the same bits.
        uint64_t& digest = digests[size_t(index)];
        if (digest && digest != test.digest()) test.fail("has other bits on another thread");
        digest = test.digest();
    }

    void fail(const Failure& failure, const Current& at) {
        std::lock_guard<std::mutex> lock(mutex);
        if (failed.exchange(true)) return;
        fprintf(stderr, "%s; ", failure.what());
        at.print();
    }

    void print(const Options& options) const {
        printf("%llu cases of %zu functions, seed %llu: all pass\n", static_cast<unsigned long long>(finished.load()),
               called.size(), static_cast<unsigned long long>(options.seed));
    }
};

// Runs cases one after the other, until there are enough, the time is over, or one failed on any thread.
void run(const Options& options, Report& report) {
    auto start = std::chrono::steady_clock::now();
    auto is_over = [&](uint64_t i) {
        std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
        return options.seconds > 0 ? elapsed.count() >= options.seconds : i >= options.cases;
    };
    for (uint64_t i = 0; !is_over(i) && !report.failed; i++) {
        uint64_t number = options.first + i;
        Current current{options.only ? options.only : &CHECKS[number % std::size(CHECKS)], options.seed, number};
        {
            std::lock_guard<std::mutex> lock(latest_mutex);
            latest = current;
        }
        try {
            Case test(options.seed, number);
            current.check->run(test);
            report.pass(i, test);
        } catch (const Failure& failure) {
            report.fail(failure, current);
        }
    }
}

}  // namespace

int main(int count, char** words) {
    Options options = parse(count, words);
#if defined(__linux__)
    if (__sanitizer_set_death_callback) __sanitizer_set_death_callback([] { latest.print(); });
#endif
    Report report;
    std::vector<std::thread> callers;
    for (int i = 1; i < options.callers; i++) callers.emplace_back([&] { run(options, report); });
    run(options, report);
    for (std::thread& caller : callers) caller.join();
    if (report.failed) return 1;
    report.print(options);
    return 0;
}
