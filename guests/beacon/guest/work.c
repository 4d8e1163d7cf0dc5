/* A worker's main loop: beat, dirty, check, idle. */
#include "guest.h"

#define CHECK_USEC 500       /* between two checks of the held registers */
#define HOLD_USEC 5         /* of each such period at least, values stay in the general registers */
#define BURST_USEC 10000     /* what a worker that fell behind makes up for */
#define STEP_USEC 10000      /* a longer step of the loop was not running time */
#define TIMER_LOST_USEC 1000000

/* Whether a counter that a timer raises stands still while this vCPU runs. */
struct watch {
    uint64_t seen, still;
    int lost;
};

static void watch(struct watch *watch, vcpu_t vcpu, uint64_t counter, uint64_t step) {
    if (counter != watch->seen) {
        watch->seen = counter;
        watch->still = 0;
        watch->lost = 0;
        return;
    }
    watch->still += step < usec(STEP_USEC) ? step : usec(STEP_USEC);
    if (watch->still > usec(TIMER_LOST_USEC) && !watch->lost) {
        watch->lost = 1;
        count(&vcpu->timer_lost);
        record_interrupt(vcpu, TIMER_LOST, counter + 1, counter);
    }
}

static void beat(vcpu_t me, uint64_t now) {
    put_byte(options.heartbeat_port, me->beats);
    if (me->beats && now - me->last_beat > me->max_gap) {
        me->max_gap = now - me->last_beat;
        me->max_gap_beat = me->beats;
    }
    me->last_beat = now;
    me->beats++;
}

/* When the next of a series is due: on time, or, after a pause, from at most `burst` ago. */
static uint64_t following(uint64_t due, uint64_t period, uint64_t now, uint64_t burst) {
    due += period;
    return due + burst < now ? now - burst : due;
}

/* Ticks of the counter between two of this vCPU's pages at `rate` MiB/s of all workers together. */
static uint64_t page_period(uint64_t rate) { return rate ? control.tsc_khz * 1000 * options.cpus / (rate * 256) : 0; }

/* vCPU 0 also looks after what has no main loop. */
static void look_after_others(vcpu_t me, uint64_t now, uint64_t step) {
    static struct watch sleepers[MAX_VCPUS];
    obey_commands(me);
    watch_serial(me, now);
    watch_waiting(now);
    for (uint64_t i = options.cpus; i < control.vcpus; i++) {
        vcpu_t vcpu = &control.vcpu[i];
        if (vcpu->role == SLEEPER && vcpu->started) {
            if (options.tick)
                watch(&sleepers[i], vcpu, vcpu->wakeups, step);
            announce(vcpu);
        }
    }
}

/* Every worker stamps its share; vCPU 0 says when all are done. */
static void start_working(vcpu_t me) {
    prepare_registers();
    load_registers(me);
    start_interrupts();
    me->started = 1;
    fill_share(me);
    static volatile uint64_t filled;
    __atomic_add_fetch(&filled, 1, __ATOMIC_SEQ_CST);
    if (vcpu_number(me) == 0) {
        while (filled < control.workers)
            pause();
        say("ready cpus=%d set=%dMiB fill=%dMiB tsc_khz=%d classes=%x", options.cpus, control.set_pages / 256,
            control.fill_pages / 256, control.tsc_khz, control.classes);
        control.state = RUNNING;
    }
    while (control.state != RUNNING)
        pause();
}

void work(vcpu_t me) {
    start_working(me);
    struct watch ticks = {0};
    int first = vcpu_number(me) == 0, dirties = me->set_pages > 0;
    int beats = first && options.heartbeat_usec, scans = options.scan && me->fill_pages;
    uint64_t page = page_period(options.rate), scan = page_period(options.scan), beat_period = usec(options.heartbeat_usec);
    uint64_t last = cycles(), next_beat = last, next_page = last, next_scan = last;
    uint64_t check_period = usec(CHECK_USEC), last_check = last;
    for (;;) {
        uint64_t now = cycles(), step = now - last;
        last = now;
        if (beats && now >= next_beat) {
            beat(me, now);
            next_beat = following(next_beat, beat_period, now, 0);
        }
        if (now - last_check >= check_period) {
            check_registers(me);
            hold_general(me, now + usec(HOLD_USEC));
            announce(me);
            if (first)
                look_after_others(me, now, now - last_check);
            last_check = now;
        }
        if (options.tick)
            watch(&ticks, me, me->ticks, step);
        if (options.pend)
            pend(me, now);

        int busy = 0;
        if (dirties && now >= next_page) {
            visit_page(me);
            next_page = following(next_page, page, now, usec(BURST_USEC));
            busy = 1;
        }
        if (scans && now >= next_scan) {
            scan_page(me);
            next_scan = following(next_scan, scan, now, usec(BURST_USEC));
            busy = 1;
        }
        if (!busy) {
            uint64_t until = last_check + check_period;
            if (beats && next_beat < until)
                until = next_beat;
            if (dirties && next_page < until)
                until = next_page;
            if (scans && next_scan < until)
                until = next_scan;
            hold_general(me, until);
        }
    }
}
