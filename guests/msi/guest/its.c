#include "its.h"

#include "cpu.h"
#include "layout.h"

#define GITS_CTLR (GITS + 0x0)
#define GITS_CBASER (GITS + 0x80)
#define GITS_CWRITER (GITS + 0x88)
#define GITS_CREADR (GITS + 0x90)
#define GITS_BASER (GITS + 0x100)

#define QUEUE_SIZE 0x10000ul
#define LEVEL_2_PAGES 4ul
#define DEVICES_A_PAGE 0x2000ul         // 64 KiB of 8 bytes each

static const uint64_t VALID = 1ul << 63;
static const uint64_t INDIRECT = 1ul << 62;
static const uint64_t WRITE_BACK = 7ul << 59;
static const uint64_t INNER_SHAREABLE = 1ul << 10;
static const uint64_t PAGES_OF_64K = 2ul << 8;

enum table { DEVICES = 1, COLLECTIONS = 4 };
enum command {
    MOVI = 0x01, SYNC = 0x05, MAPD = 0x08, MAPC = 0x09, MAPTI = 0x0a, INV = 0x0c, INVALL = 0x0d, DISCARD = 0x0f
};

static uint64_t write_offset;

static void set_table(uint64_t type, uint64_t flags, uint64_t at, uint64_t pages)
{
    for (uint64_t n = 0; n < 8; n++)
        if ((read64(GITS_BASER + n * 8) >> 56 & 7) == type)
            write64(GITS_BASER + n * 8, VALID | WRITE_BACK | flags | at | INNER_SHAREABLE | PAGES_OF_64K | (pages - 1));
}

void its_prepare(uint64_t two_level)
{
    write_offset = 0;
    if (two_level) {
        for (uint64_t n = 0; n < LEVEL_2_PAGES; n++)
            write64(DEVICE_LEVEL_1 + n * 8, VALID | (DEVICE_LEVEL_2 + n * 0x10000));
        set_table(DEVICES, INDIRECT, DEVICE_LEVEL_1, 1);
    } else {
        set_table(DEVICES, 0, DEVICE_TABLE, 8);
    }
    set_table(COLLECTIONS, 0, COLLECTION_TABLE, 1);
    write64(GITS_CBASER, VALID | WRITE_BACK | QUEUE | INNER_SHAREABLE | (QUEUE_SIZE / 4096 - 1));
    write64(GITS_CWRITER, 0);
    barrier();
    write32(GITS_CTLR, 1);
}

static int issue(uint64_t w0, uint64_t w1, uint64_t w2)
{
    uint64_t at = QUEUE + write_offset;
    write64(at, w0);
    write64(at + 8, w1);
    write64(at + 16, w2);
    write64(at + 24, 0);
    write_offset = (write_offset + 32) % QUEUE_SIZE;
    barrier();
    write64(GITS_CWRITER, write_offset);
    for (uint64_t tries = 0; tries < 1000000; tries++)
        if (read64(GITS_CREADR) == write_offset)
            return 1;
    return 0;
}

static uint64_t of_device(enum command command, uint32_t device)
{
    return command | (uint64_t)device << 32;
}

int its_map_device(uint32_t device, uint64_t table, uint64_t bits)
{
    return issue(of_device(MAPD, device), bits - 1, VALID | table);
}

int its_unmap_device(uint32_t device)
{
    return issue(of_device(MAPD, device), 0, 0);
}

int its_map_collection(uint32_t collection, uint64_t cpu)
{
    return issue(MAPC, 0, VALID | cpu << 16 | collection) && issue(SYNC, 0, cpu << 16);
}

int its_map_event(uint32_t device, uint32_t event, uint32_t lpi, uint32_t collection)
{
    return issue(of_device(MAPTI, device), event | (uint64_t)lpi << 32, collection)
        && issue(of_device(INV, device), event, 0) && issue(SYNC, 0, (uint64_t)collection << 16);
}

int its_move_event(uint32_t device, uint32_t event, uint32_t collection)
{
    return issue(of_device(MOVI, device), event, collection);
}

int its_discard(uint32_t device, uint32_t event)
{
    return issue(of_device(DISCARD, device), event, 0);
}

int its_invalidate_all(uint32_t collection)
{
    return issue(INVALL, 0, collection) && issue(SYNC, 0, (uint64_t)collection << 16);
}
