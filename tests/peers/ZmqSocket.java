import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.zeromq.ZContext;
import org.zeromq.ZMQ;

/**
 * A socket of JeroMQ that does one thing, as {@code zmq_socket.py} does with libzmq.
 *
 * <pre>java -cp jeromq.jar ZmqSocket.java TYPE bind|connect ENDPOINT send|receive|echo|ask COUNT IDENTITY</pre>
 *
 * It prints {@code ready ENDPOINT} first, and {@code done} at the end. It exits when its standard input ends.
 */
public class ZmqSocket {
    private static final int PATIENCE_MS = 60_000;
    private static final BufferedReader INPUT = new BufferedReader(new InputStreamReader(System.in));

    public static void main(String[] args) throws Exception {
        String type = args[0];
        String action = args[3];
        int count = Integer.parseInt(args[4]);
        ZContext context = new ZContext();
        ZMQ.Socket socket = context.createSocket(ZMQ.class.getField(type).getInt(null));
        socket.setReceiveTimeOut(PATIENCE_MS);
        socket.setSendTimeOut(PATIENCE_MS);
        socket.setLinger(action.equals("send") ? PATIENCE_MS : 0);
        if (!args[5].isEmpty()) {
            socket.setIdentity(args[5].getBytes());
        }
        if (type.equals("SUB")) {
            socket.subscribe(new byte[0]);
        }
        if (type.endsWith("PUB")) {
            // Otherwise the socket would drop messages beyond its high-water mark.
            socket.setHWM(0);
        }
        String endpoint = args[2];
        if (args[1].equals("bind")) {
            endpoint = "tcp://127.0.0.1:" + (endpoint.endsWith("*")
                    ? socket.bindToRandomPort("tcp://127.0.0.1")
                    : bind(socket, endpoint));
        } else {
            socket.connect(endpoint);
        }
        if (type.equals("XSUB")) {
            socket.send(new byte[] {1});
        }
        say("ready " + endpoint);
        if (action.equals("echo")) {
            Thread end = new Thread(() -> {
                try {
                    while (INPUT.readLine() != null) {}
                } catch (java.io.IOException error) {
                    // An error ends the program in the same way.
                }
                System.exit(0);
            });
            end.setDaemon(true);
            end.start();
            while (true) {
                List<byte[]> frames = receive(socket);
                if (frames != null) {
                    send(socket, frames);
                }
            }
        }
        waitForSubscriber(socket, type);
        act(socket, type, action, count);
        say("done");
        while (INPUT.readLine() != null) {}
        socket.close();
        context.close();
        System.exit(0);
    }

    private static int bind(ZMQ.Socket socket, String endpoint) {
        socket.bind(endpoint);
        return Integer.parseInt(endpoint.substring(endpoint.lastIndexOf(':') + 1));
    }

    private static void waitForSubscriber(ZMQ.Socket socket, String type) throws Exception {
        if (type.equals("PUB")) {
            while (!INPUT.ready()) {
                socket.send("hello");
                Thread.sleep(1);
            }
            INPUT.readLine();
        }
        if (type.equals("XPUB")) {
            while (socket.recv()[0] != 1) {}
        }
    }

    private static void act(ZMQ.Socket socket, String type, String action, int count) {
        for (int number = 0; number < count; number++) {
            List<byte[]> message = new ArrayList<>(Arrays.asList(String.valueOf(number).getBytes(), "data".getBytes()));
            if (action.equals("ask") && type.equals("DEALER")) {
                message.add(0, new byte[0]);
            }
            if (!action.equals("receive")) {
                send(socket, message);
            }
            if (!action.equals("send")) {
                List<byte[]> received = receive(socket);
                check(received != null, "nothing came for " + number);
                check(received.size() == message.size(), "frames of " + number);
                for (int frame = 0; frame < message.size(); frame++) {
                    check(Arrays.equals(received.get(frame), message.get(frame)), "frame " + frame + " of " + number);
                }
            }
        }
    }

    private static void send(ZMQ.Socket socket, List<byte[]> frames) {
        for (int frame = 0; frame < frames.size(); frame++) {
            boolean isSent = socket.send(frames.get(frame), frame + 1 < frames.size() ? ZMQ.SNDMORE : 0);
            check(isSent, "it could not be sent");
        }
    }

    private static List<byte[]> receive(ZMQ.Socket socket) {
        List<byte[]> frames = new ArrayList<>();
        do {
            byte[] frame = socket.recv();
            if (frame == null) {
                return null;
            }
            frames.add(frame);
        } while (socket.hasReceiveMore());
        return frames;
    }

    private static void say(String what) {
        System.out.println(what);
        System.out.flush();
    }

    private static void check(boolean holds, String what) {
        if (!holds) {
            System.err.println("ZmqSocket: " + what);
            System.exit(1);
        }
    }
}
