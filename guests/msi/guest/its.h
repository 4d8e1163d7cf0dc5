// The ITS and its commands (Arm IHI 0069). Each returns whether the command was taken.
#pragma once

#include <stdint.h>

void its_prepare(uint64_t two_level);
// `bits`: of the device's event ids.
int its_map_device(uint32_t device, uint64_t table, uint64_t bits);
int its_unmap_device(uint32_t device);
int its_map_collection(uint32_t collection, uint64_t cpu);
int its_map_event(uint32_t device, uint32_t event, uint32_t lpi, uint32_t collection);
int its_move_event(uint32_t device, uint32_t event, uint32_t collection);
int its_discard(uint32_t device, uint32_t event);
int its_invalidate_all(uint32_t collection);
