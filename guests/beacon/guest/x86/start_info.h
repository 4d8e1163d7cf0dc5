/* What a PVH loader hands over: hvm_start_info and its memory map, laid out as Xen's public headers have them. */
#pragma once
#include <stdint.h>

#define MEMORY_MAP_RAM 1

struct start_info {
    uint32_t magic, version, flags, modules;
    uint64_t module_list, command_line, rsdp;
    uint64_t memory_map; /* from version 1 on */
    uint32_t memory_map_entries, reserved;
};

struct memory_map_entry {
    uint64_t address, size;
    uint32_t type, reserved;
};
