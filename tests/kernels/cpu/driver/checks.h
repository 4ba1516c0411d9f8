// The checks: each fills the arguments of one function at random, calls it, and checks its results.
#pragma once
#include "case.h"

struct Check {
    const char* name;
    void (*run)(Case& test);
};

void check_pad(Case& test);
void check_fold(Case& test);
void check_norm(Case& test);
void check_norm_lines(Case& test);
void check_norm_backward(Case& test);
void check_norm_backward_lines(Case& test);
void check_sum_pixels(Case& test);
void check_winograd(Case& test);
void check_winograd_gradient(Case& test);
void check_wide(Case& test);
void check_few(Case& test);
void check_wide_gradient(Case& test);
void check_few_gradient(Case& test);
void check_equal(Case& test);
