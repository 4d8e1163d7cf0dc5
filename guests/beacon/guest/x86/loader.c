/* PVH's start info: the command line and the memory map. */
#include "start_info.h"
#include "x86.h"

const char *loader_command_line(void) {
    return (const char *)((const struct start_info *)start_info)->command_line;
}

/* It lies below those pages. */
void clear_loader(void) {}

void add_loader_ranges(void) {
    const struct start_info *info = (const struct start_info *)start_info;
    const struct memory_map_entry *map = (const struct memory_map_entry *)info->memory_map;
    if (info->version)
        for (uint32_t i = 0; i < info->memory_map_entries; i++)
            if (map[i].type == MEMORY_MAP_RAM)
                add_range(map[i].address, map[i].address + map[i].size);
}
