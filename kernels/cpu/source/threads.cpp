// Threads of this library, where it does not use those of an OpenMP runtime.
#include "threads.h"

#if !FCG_OPENMP
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

namespace {

class Pool {
    // Held by the call whose task the workers run.
    std::mutex in_use;
    // Guards what follows.
    std::mutex mutex;
    std::condition_variable started, finished;
    Task task{};
    uint64_t tasks = 0;
    // The threads of the task, with the caller's, and the workers that have not finished it.
    int wanted = 0, running = 0;
    // Only the call that holds `in_use` reads or changes it.
    int workers = 0;

    void work(int number, uint64_t seen) {
        for (;;) {
            std::unique_lock<std::mutex> lock(mutex);
            started.wait(lock, [&] { return tasks != seen; });
            seen = tasks;
            if (number >= wanted) continue;
            Task todo = task;
            int threads = wanted;
            lock.unlock();
            todo.body(todo.data, number, threads);
            lock.lock();
            if (--running == 0) finished.notify_one();
        }
    }

    // Starts workers until there are `count`, or no more can be started.
    void hire(int count) {
        try {
            // They are never joined: at the end of the process, they wait.
            for (; workers < count; workers++) std::thread(&Pool::work, this, workers + 1, tasks).detach();
        } catch (const std::system_error&) {
        }
    }

   public:
    // Returns false, having done nothing, while the workers run the task of another call.
    bool run(const Task& given, int threads) {
        std::unique_lock<std::mutex> only(in_use, std::try_to_lock);
        if (!only.owns_lock()) return false;
        hire(threads - 1);
        if (threads > workers + 1) threads = workers + 1;
        std::unique_lock<std::mutex> lock(mutex);
        task = given;
        wanted = threads;
        running = threads - 1;
        tasks++;
        lock.unlock();
        started.notify_all();
        given.body(given.data, 0, threads);
        lock.lock();
        finished.wait(lock, [&] { return running == 0; });
        return true;
    }
};

}  // namespace

void run_on_threads(const Task& task, int threads) {
    // Never destroyed, because the workers still use it when the process ends.
    static Pool& pool = *new Pool;
    if (!pool.run(task, threads)) task.body(task.data, 0, 1);
}
#endif
