/* Code that both reference pairs share: options, counters, start and end.
 *
 * usage: PAIR server|client ADDRESS PORT CONNECTIONS PER_PROCESS ACTIVE OPTION [FIRST_SOURCE]
 *
 * Both print "ready". A client then waits for a line on its standard input, opens CONNECTIONS and
 * prints "done HELD LOST SECONDS". Both hold until their standard input ends, then close by RST.
 * A process has PER_PROCESS connections, as the hard limit on open files demands. ACTIVE processes
 * work at a time. Sources are FIRST_SOURCE and the addresses after it, 64,512 ports each.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { FIRST_PORT = 1024, PORTS = 65536 - FIRST_PORT, MOST_WORKERS = 4096, BACKLOG = 65535 };

static struct {
    int is_server, processes;
    struct sockaddr_in target;
    long connections, per_process, active, option;
    uint32_t first_source;
} opt;

/* In shared memory: written by the workers, read by the parent. */
static struct shared {
    long next; /* the process whose turn is next */
    long done;
    long held[MOST_WORKERS], lost[MOST_WORKERS];
} *shared;

static int wake[MOST_WORKERS][2], bell[2], *fds;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec / 1e9;
}

static long share(int process) {
    long before = (long)process * opt.per_process;
    long left = opt.connections - before;
    return left < opt.per_process ? left : opt.per_process;
}

/* Source of connection number n: 64,512 ports of one address, then the next address. */
static struct sockaddr_in source_of(long n) {
    struct sockaddr_in from = {.sin_family = AF_INET};
    from.sin_addr.s_addr = htonl(opt.first_source + n / PORTS);
    from.sin_port = htons(FIRST_PORT + n % PORTS);
    return from;
}

static void wait_turn(int process) {
    char byte;
    if (read(wake[process][0], &byte, 1) != 1) exit(1);
}

static void pass_turn(void) {
    long process = __atomic_fetch_add(&shared->next, 1, __ATOMIC_SEQ_CST);
    if (process < opt.processes && write(wake[process][1], "t", 1) != 1) exit(1);
}

static void report_done(void) {
    if (write(bell[1], "d", 1) != 1) exit(1);
}

static int listen_socket(void) {
    int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&opt.target, sizeof opt.target)) die("bind");
    if (listen(fd, BACKLOG)) die("listen");
    return fd;
}

static void setup(int argc, char **argv) {
    if (argc < 8) {
        fprintf(stderr, "usage: see common.h\n");
        exit(2);
    }
    opt.is_server = !strcmp(argv[1], "server");
    opt.target.sin_family = AF_INET;
    if (inet_pton(AF_INET, argv[2], &opt.target.sin_addr) != 1) die(argv[2]);
    opt.target.sin_port = htons(atoi(argv[3]));
    opt.connections = atol(argv[4]);
    opt.per_process = atol(argv[5]);
    opt.active = atol(argv[6]);
    opt.option = atol(argv[7]);
    if (argc > 8) {
        struct in_addr first;
        if (inet_pton(AF_INET, argv[8], &first) != 1) die(argv[8]);
        opt.first_source = ntohl(first.s_addr);
    }
    opt.processes = (opt.connections + opt.per_process - 1) / opt.per_process;
    if (opt.processes > MOST_WORKERS) exit(2);
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    shared = mmap(0, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) die("mmap");
    if (pipe(bell)) die("pipe");
}

/* Fork the workers; each runs work(process), then holds until it is killed or ordered to end. */
static void start(void (*work)(int)) {
    for (int process = 0; process < opt.processes; process++)
        if (pipe(wake[process])) die("pipe");
    for (int process = 0; process < opt.processes; process++) {
        pid_t pid = fork();
        if (pid < 0) die("fork");
        if (pid) continue;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        fds = malloc(sizeof *fds * opt.per_process);
        work(process);
        report_done();
        wait_turn(process); /* until the order to end */
        struct linger rst = {1, 0};
        for (long i = 0; i < shared->held[process]; i++) {
            setsockopt(fds[i], SOL_SOCKET, SO_LINGER, &rst, sizeof rst);
            close(fds[i]);
        }
        _exit(0);
    }
}

static void finish(void) {
    char line[64];
    while (read(0, line, sizeof line) > 0) continue;
    for (int process = 0; process < opt.processes; process++)
        if (write(wake[process][1], "e", 1) != 1) die("write");
    alarm(20); /* a worker that still waits for a connection dies with this process */
    while (wait(0) > 0) continue;
}

/* The clients' parent: from the start signal to the end of the last process. */
static void run_client(void) {
    char line[64];
    puts("ready");
    fflush(stdout);
    if (read(0, line, sizeof line) <= 0) exit(1);
    double began = seconds();
    for (long turn = 0; turn < opt.active; turn++) pass_turn();
    for (int process = 0; process < opt.processes; process++)
        if (read(bell[0], line, 1) != 1) exit(1);
    long held = 0, lost = 0;
    for (int process = 0; process < opt.processes; process++)
        held += shared->held[process], lost += shared->lost[process];
    printf("done %ld %ld %.6f\n", held, lost, seconds() - began);
    fflush(stdout);
    finish();
}

static void run_server(void) {
    for (long turn = 0; turn < opt.active; turn++) pass_turn();
    puts("ready");
    fflush(stdout);
    finish();
}
