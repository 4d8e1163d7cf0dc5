// The kernel's command line, out of the flattened device tree.
#pragma once

#include <stdint.h>

// The number behind `name=`, or `otherwise`.
uint64_t option(uint64_t device_tree, const char *name, uint64_t otherwise);
