/* One side of a pattern of the libzmq stack, without a server in between.
 *
 *   patterns-peer push|pull|pair-send|pair-receive|req|rep|dealer|router|inproc --port N [--clients N …]
 *
 * The options and the lines on stdin and stdout are those of every other stack: see src/plan.rs,
 * src/peer/mod.rs and src/peer/patterns/mod.rs. All options of libzmq have their defaults, unless --hwm sets
 * the high-water marks. So a sender waits when a thousand messages are queued, and nothing is dropped. Each
 * side is a thread. Several PULL sockets share a thread, which polls them and empties each in turn.
 */
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <zmq.h>

enum { HEADER = 16, BURST = 256, CHECK = 16, ROUND_TRIPS = 1 << 22 };
enum kind { PROBE = 1, WARM_UP = 2, MEASURED = 3 };
static const uint64_t TICK_NS = 50000, PROBE_INTERVAL_NS = 10000000, SECOND_NS = 1000000000;

static long port, clients = 1, count, warm_up, size = HEADER, rate, limit_ms, window = 1, hwm = -1;
static long publishers, topics, stride; /* These and `interest` have no effect here. */
static const char *side = "connect", *latency_file, *interest;
static void *context;

static void die(const char *what)
{
    fprintf(stderr, "libzmq: %s: %s\n", what, zmq_strerror(zmq_errno()));
    exit(1);
}

static void say(const char *line)
{
    puts(line);
    fflush(stdout);
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void sleep_ns(uint64_t ns)
{
    struct timespec t = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
    nanosleep(&t, NULL);
}

static void *open_socket(int type, int binds, const char *endpoint)
{
    int mark = (int)hwm;
    void *socket = zmq_socket(context, type);
    if (!socket)
        die("socket");
    if (hwm >= 0) {
        zmq_setsockopt(socket, ZMQ_SNDHWM, &mark, sizeof mark);
        zmq_setsockopt(socket, ZMQ_RCVHWM, &mark, sizeof mark);
    }
    if (binds ? zmq_bind(socket, endpoint) : zmq_connect(socket, endpoint))
        die(endpoint);
    return socket;
}

static void *open_tcp_socket(int type)
{
    char endpoint[64];
    snprintf(endpoint, sizeof endpoint, "tcp://127.0.0.1:%ld", port);
    return open_socket(type, !strcmp(side, "bind"), endpoint);
}

/* ---- phases ---- */

static pthread_mutex_t phase_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t phase_changed = PTHREAD_COND_INITIALIZER;
static enum { CONNECTED, PROBING, GO } phase;

static void set_phase(int next)
{
    pthread_mutex_lock(&phase_lock);
    phase = next;
    pthread_cond_broadcast(&phase_changed);
    pthread_mutex_unlock(&phase_lock);
}

/* Waits until the phase is at least this one, or the time has passed. Returns the phase. */
static int wait_phase(int wanted, uint64_t ns)
{
    struct timespec end;
    clock_gettime(CLOCK_REALTIME, &end);
    uint64_t sum = (uint64_t)end.tv_nsec + ns;
    end.tv_sec += (time_t)(sum / 1000000000u);
    end.tv_nsec = (long)(sum % 1000000000u);
    pthread_mutex_lock(&phase_lock);
    while ((int)phase < wanted && pthread_cond_timedwait(&phase_changed, &phase_lock, &end) == 0)
        ;
    int found = phase;
    pthread_mutex_unlock(&phase_lock);
    return found;
}

/* ---- sending one way ---- */

static char *new_payload(void)
{
    char *payload = malloc((size_t)size);
    memset(payload, 'x', (size_t)size);
    return payload;
}

static void send_message(void *socket, char *payload, enum kind kind, uint64_t sequence, uint64_t due)
{
    uint64_t header[2] = {(uint64_t)kind << 56 | sequence, due};
    memcpy(payload, header, sizeof header);
    if (zmq_send(socket, payload, (size_t)size, 0) < 0)
        die("send");
}

/* Sends message number `sent`, of which the first ones are a warm-up. */
static void send_number(void *socket, char *payload, long sent, uint64_t due)
{
    int is_warm_up = sent < warm_up;
    send_message(socket, payload, is_warm_up ? WARM_UP : MEASURED, (uint64_t)(is_warm_up ? sent : sent - warm_up), due);
}

static void *send_all(void *socket)
{
    char *payload = new_payload();
    while (wait_phase(PROBING, SECOND_NS) < PROBING)
        ;
    do
        send_message(socket, payload, PROBE, 0, 0);
    while (wait_phase(GO, PROBE_INTERVAL_NS) < GO);

    prctl(PR_SET_TIMERSLACK, 1UL, 0, 0, 0);
    uint64_t start = now_ns(), end = start + (uint64_t)limit_ms * 1000000u, measured_from = UINT64_MAX;
    long total = warm_up + count, sent = 0, check = size < 4096 ? CHECK : 1;
    for (; sent < total; sent++) {
        uint64_t due = 0;
        if (rate) {
            due = start + (uint64_t)sent * 1000000000u / (uint64_t)rate;
            for (uint64_t now; (now = now_ns()) < due;)
                sleep_ns(due - now < TICK_NS ? TICK_NS : due - now);
        }
        if (sent % check == 0 && now_ns() > end)
            break;
        if (sent == warm_up)
            measured_from = now_ns();
        send_number(socket, payload, sent, due);
    }
    printf("published %ld %" PRIu64 "\n", sent > warm_up ? sent - warm_up : 0, measured_from);
    fflush(stdout);
    return NULL;
}

/* ---- receiving one way ---- */

struct receiver {
    _Alignas(128) atomic_ulong seen; /* whether a probe was received */
    atomic_ulong received, first, last, at_last, disorder;
    uint64_t next;
    void *socket;
};
static struct receiver *receivers;
static uint64_t *latencies;
static atomic_ulong latency_count;
static uint64_t latency_room;

#define STORE(field, value) atomic_store_explicit(&(field), (value), memory_order_relaxed)
#define LOAD(field) atomic_load_explicit(&(field), memory_order_relaxed)

static void note(struct receiver *self, const void *payload)
{
    uint64_t header[2];
    memcpy(header, payload, sizeof header);
    enum kind kind = header[0] >> 56;
    if (kind != MEASURED) {
        if (kind == PROBE)
            STORE(self->seen, 1);
        return;
    }
    uint64_t sequence = header[0] & 0xffffffffff;
    if (sequence < self->next)
        STORE(self->disorder, LOAD(self->disorder) + 1);
    self->next = sequence + 1;
    uint64_t received = LOAD(self->received) + 1;
    STORE(self->received, received);
    if (latency_room) {
        uint64_t index = LOAD(latency_count), now = now_ns();
        if (index < latency_room)
            latencies[index] = now > header[1] ? now - header[1] : 0;
        STORE(latency_count, index + 1);
    }
    if (received < 64 || received % 16 == 0 || received == (uint64_t)count) {
        uint64_t now = now_ns();
        if (received == 1)
            STORE(self->first, now);
        STORE(self->last, now);
        STORE(self->at_last, received);
    }
}

/* Receives one message. Returns 0 if there is none and the flags say not to wait for it. */
static int receive(struct receiver *self, zmq_msg_t *part, int flags)
{
    if (zmq_msg_recv(part, self->socket, flags) < 0) {
        if (zmq_errno() == EAGAIN)
            return 0;
        die("receive");
    }
    if (zmq_msg_more(part) || zmq_msg_size(part) != (size_t)size)
        die("a message of another shape came");
    note(self, zmq_msg_data(part));
    return 1;
}

static void *receive_all(void *unused)
{
    (void)unused;
    zmq_msg_t part;
    zmq_msg_init(&part);
    if (clients == 1)
        for (;;)
            receive(&receivers[0], &part, 0);
    zmq_pollitem_t *items = calloc((size_t)clients, sizeof *items);
    for (long i = 0; i < clients; i++)
        items[i] = (zmq_pollitem_t){receivers[i].socket, 0, ZMQ_POLLIN, 0};
    for (;;) {
        if (zmq_poll(items, (int)clients, -1) < 0)
            die("poll");
        for (long i = 0; i < clients; i++)
            for (int n = 0; items[i].revents && n < BURST && receive(&receivers[i], &part, ZMQ_DONTWAIT); n++)
                ;
    }
    return NULL;
}

/* Makes receivers without sockets, which are opened later. */
static void make_receivers(void)
{
    receivers = aligned_alloc(128, (size_t)clients * sizeof *receivers);
    memset(receivers, 0, (size_t)clients * sizeof *receivers);
    if (latency_file) {
        latency_room = (uint64_t)count;
        latencies = calloc(latency_room, sizeof *latencies);
    }
}

static void print_status(void)
{
    uint64_t seen = 0, received = 0;
    for (long i = 0; i < clients; i++) {
        seen += LOAD(receivers[i].seen);
        received += LOAD(receivers[i].received);
    }
    printf("status %" PRIu64 " %" PRIu64 "\n", seen, received);
    fflush(stdout);
}

static void write_latencies(uint64_t known)
{
    FILE *file = fopen(latency_file, "wb");
    if (!file || fwrite(latencies, sizeof *latencies, known, file) != known || fclose(file)) {
        perror(latency_file);
        exit(1);
    }
}

static void print_result(void)
{
    uint64_t received = 0, at_last = 0, disorder = 0, first = UINT64_MAX, last = 0;
    for (long i = 0; i < clients; i++) {
        struct receiver *r = &receivers[i];
        received += LOAD(r->received);
        at_last += LOAD(r->at_last);
        disorder += LOAD(r->disorder);
        first = LOAD(r->received) && LOAD(r->first) < first ? LOAD(r->first) : first;
        last = LOAD(r->last) > last ? LOAD(r->last) : last;
    }
    if (latency_file)
        write_latencies(LOAD(latency_count) < latency_room ? LOAD(latency_count) : latency_room);
    printf("result {\"received\":%" PRIu64 ",\"timed\":%" PRIu64 ",\"first_ns\":%" PRIu64 ",\"last_ns\":%" PRIu64
           ",\"disorder\":%" PRIu64 "}\n",
           received, at_last, first, last, disorder);
    fflush(stdout);
}

/* ---- requests and replies ---- */

static void receive_reply(void *socket, zmq_msg_t *part, uint64_t header[2])
{
    if (zmq_msg_recv(part, socket, 0) < 0)
        die("receive");
    if (zmq_msg_more(part) || zmq_msg_size(part) != (size_t)size)
        die("a reply of another shape came");
    memcpy(header, zmq_msg_data(part), HEADER);
}

/* Keeps `window` requests in progress until there were enough of them or the time is up. */
static void *ask_all(void *socket)
{
    char *payload = new_payload();
    uint64_t header[2];
    zmq_msg_t part;
    zmq_msg_init(&part);
    send_message(socket, payload, PROBE, 0, 0);
    receive_reply(socket, &part, header);
    say("ready");
    while (wait_phase(GO, SECOND_NS) < GO)
        ;

    if (latency_file)
        latencies = calloc(ROUND_TRIPS, sizeof *latencies);
    uint64_t end = now_ns() + (uint64_t)limit_ms * 1000000u, first = 0, known = 0, disorder = 0;
    long total = warm_up + count, asked = 0, answered = 0;
    int is_over = 0;
    for (;;) {
        while (!is_over && asked - answered < window) {
            is_over = asked == total || (asked % CHECK == 0 && now_ns() > end);
            if (is_over)
                break;
            if (asked == warm_up)
                first = now_ns();
            send_number(socket, payload, asked, latency_file ? now_ns() : 0);
            asked++;
        }
        if (answered == asked)
            break;
        receive_reply(socket, &part, header);
        int is_warm_up = answered < warm_up;
        if (latency_file && !is_warm_up && known < ROUND_TRIPS)
            latencies[known++] = now_ns() - header[1];
        uint64_t expected = (uint64_t)(is_warm_up ? WARM_UP : MEASURED) << 56
                            | (uint64_t)(is_warm_up ? answered : answered - warm_up);
        disorder += header[0] != expected;
        answered++;
    }
    uint64_t last = now_ns();
    if (latency_file)
        write_latencies(known);
    printf("done {\"round_trips\":%ld,\"first_ns\":%" PRIu64 ",\"last_ns\":%" PRIu64 ",\"disorder\":%" PRIu64 "}\n",
           answered > warm_up ? answered - warm_up : 0, first, last, disorder);
    fflush(stdout);
    return NULL;
}

/* Sends each frame back as it is received. The first frame from a ROUTER is the identity of the sender, which
 * routes the other frames back. */
static void *answer_all(void *socket)
{
    zmq_msg_t part;
    zmq_msg_init(&part);
    for (;;) {
        if (zmq_msg_recv(&part, socket, 0) < 0)
            die("receive");
        if (zmq_msg_send(&part, socket, zmq_msg_more(&part) ? ZMQ_SNDMORE : 0) < 0)
            die("send");
    }
    return NULL;
}

/* ---- all patterns ---- */

static void read_options(int argc, char **argv)
{
    struct {
        const char *name;
        long *number;
        const char **text;
    } options[] = {{"--port", &port, NULL},         {"--clients", &clients, NULL},   {"--publishers", &publishers, NULL},
                   {"--count", &count, NULL},       {"--warm-up", &warm_up, NULL},   {"--size", &size, NULL},
                   {"--topics", &topics, NULL},     {"--stride", &stride, NULL},     {"--rate", &rate, NULL},
                   {"--limit-ms", &limit_ms, NULL}, {"--interest", NULL, &interest}, {"--latencies", NULL, &latency_file},
                   {"--window", &window, NULL},     {"--hwm", &hwm, NULL},           {"--side", NULL, &side}};
    for (int i = 2; i + 1 < argc; i += 2) {
        int known = 0;
        for (size_t o = 0; o < sizeof options / sizeof *options; o++)
            if (!strcmp(argv[i], options[o].name)) {
                known = 1;
                if (options[o].number)
                    *options[o].number = atol(argv[i + 1]);
                else
                    *options[o].text = argv[i + 1];
            }
        if (!known) {
            fprintf(stderr, "libzmq: unknown option %s\n", argv[i]);
            exit(2);
        }
    }
    if (size < HEADER || clients < 1 || window < 1) {
        fprintf(stderr, "libzmq: impossible sizes or counts\n");
        exit(2);
    }
}

static void begin(void *(*work)(void *), void *socket)
{
    pthread_t worker;
    if (pthread_create(&worker, NULL, work, socket)) {
        fprintf(stderr, "libzmq: cannot start a thread\n");
        exit(1);
    }
}

/* Starts the threads of this part of the pattern. Returns whether they print `ready` themselves. */
static int begin_part(const char *part)
{
    static const struct {
        const char *name;
        int type;
        void *(*work)(void *);
    } parts[] = {{"push", ZMQ_PUSH, send_all},
                 {"pull", ZMQ_PULL, receive_all},
                 {"pair-send", ZMQ_PAIR, send_all},
                 {"pair-receive", ZMQ_PAIR, receive_all},
                 {"req", ZMQ_REQ, ask_all},
                 {"rep", ZMQ_REP, answer_all},
                 {"dealer", ZMQ_DEALER, ask_all},
                 {"router", ZMQ_ROUTER, answer_all}};
    for (size_t p = 0; p < sizeof parts / sizeof *parts; p++) {
        if (strcmp(part, parts[p].name))
            continue;
        if (parts[p].work == receive_all) {
            make_receivers();
            for (long i = 0; i < clients; i++)
                receivers[i].socket = open_tcp_socket(parts[p].type);
            begin(receive_all, NULL);
        } else {
            begin(parts[p].work, open_tcp_socket(parts[p].type));
        }
        return parts[p].work == ask_all;
    }
    if (!strcmp(part, "inproc")) {
        make_receivers();
        receivers[0].socket = open_socket(ZMQ_PAIR, 1, "inproc://pair");
        begin(receive_all, NULL);
        begin(send_all, open_socket(ZMQ_PAIR, 0, "inproc://pair"));
        return 0;
    }
    fprintf(stderr, "libzmq: there is no part %s\n", part);
    exit(2);
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return 2;
    read_options(argc, argv);
    context = zmq_ctx_new();
    if (!begin_part(argv[1]))
        say("ready");
    char line[64];
    while (fgets(line, sizeof line, stdin)) {
        if (!strcmp(line, "probe\n"))
            set_phase(PROBING);
        else if (!strcmp(line, "go\n"))
            set_phase(GO);
        else if (!strcmp(line, "status\n") && receivers)
            print_status();
        else if (!strcmp(line, "stop\n")) {
            if (receivers)
                print_result();
            break;
        }
    }
    _Exit(0); /* The other threads are still busy, but nothing is left to do. */
}
