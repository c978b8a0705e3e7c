import com.datadoghq.sketch.ddsketch.DDSketchWithExactSummaryStatistics;
import com.datadoghq.sketch.ddsketch.encoding.ByteArrayInput;
import com.datadoghq.sketch.ddsketch.encoding.GrowingByteArrayOutput;
import com.datadoghq.sketch.ddsketch.mapping.CubicallyInterpolatedMapping;
import com.datadoghq.sketch.ddsketch.mapping.IndexMapping;
import com.datadoghq.sketch.ddsketch.store.UnboundedSizeDenseStore;
import com.sun.management.OperatingSystemMXBean;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.lang.management.ManagementFactory;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import org.apache.kafka.common.serialization.Deserializer;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.serialization.Serializer;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.EmitStrategy;
import org.apache.kafka.streams.kstream.KStream;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.TimeWindows;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.Stores;

/**
 * Count, sum and quantiles by series (the key) and 10 s window with Kafka Streams.
 *
 * <p>Arguments: dsl | map, bootstrap servers, topic, state directory, file for the answers. {@code dsl} is
 * groupByKey, windowedBy, aggregate on an in-memory window store; {@code map} is a Processor with a HashMap of sketches
 * instead of a state store, of which nothing survives a restart. A message with key -1 and a later time ends the work.
 * Prints what was measured as a line of JSON.
 */
public final class KafkaStreamsPeer {
    private static final Duration WINDOW = Duration.ofSeconds(10);
    private static final Duration GRACE = Duration.ofSeconds(2);
    private static final int END = -1;
    private static final IndexMapping MAPPING = new CubicallyInterpolatedMapping(0.005);
    private static final OperatingSystemMXBean SYSTEM =
            (OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean();

    private static final CountDownLatch done = new CountDownLatch(1);
    private static final List<String> answers = new ArrayList<>();
    private static long firstNanos;
    private static long firstCpuNanos;
    private static long lastNanos;
    private static long lastCpuNanos;
    private static long samples;

    private static DDSketchWithExactSummaryStatistics sketch() {
        return new DDSketchWithExactSummaryStatistics(MAPPING, UnboundedSizeDenseStore::new);
    }

    private static void count(int series) {
        if (samples == 0) {
            firstNanos = System.nanoTime();
            firstCpuNanos = SYSTEM.getProcessCpuTime();
        }
        if (series != END) {
            samples++;
        }
    }

    private static void end() {
        lastNanos = System.nanoTime();
        lastCpuNanos = SYSTEM.getProcessCpuTime();
        done.countDown();
    }

    private static void answer(int series, long startMs, DDSketchWithExactSummaryStatistics sketch) {
        double[] quantiles = sketch.getValuesAtQuantiles(new double[] {0.5, 0.95, 0.99, 0.999});
        answers.add(series + "," + startMs / WINDOW.toMillis() + "," + (long) sketch.getCount() + "," + sketch.getSum()
                + "," + quantiles[0] + "," + quantiles[1] + "," + quantiles[2] + "," + quantiles[3]);
    }

    private static Serde<DDSketchWithExactSummaryStatistics> serde() {
        Serializer<DDSketchWithExactSummaryStatistics> serializer = (topic, sketch) -> {
            GrowingByteArrayOutput output = GrowingByteArrayOutput.withInitialCapacity(512);
            try {
                sketch.encode(output, true);
            } catch (IOException error) {
                throw new UncheckedIOException(error);
            }
            return output.trimmedCopy();
        };
        Deserializer<DDSketchWithExactSummaryStatistics> deserializer = (topic, bytes) -> {
            try {
                return DDSketchWithExactSummaryStatistics.decode(
                        ByteArrayInput.wrap(bytes), UnboundedSizeDenseStore::new, MAPPING);
            } catch (IOException error) {
                throw new UncheckedIOException(error);
            }
        };
        return Serdes.serdeFrom(serializer, deserializer);
    }

    private static void dsl(KStream<Integer, Double> stream) {
        // A store drops what is older than this before the windows of the last message's time jump are emitted.
        Duration retention = Duration.ofSeconds(30);
        stream.groupByKey()
                .windowedBy(TimeWindows.ofSizeAndGrace(WINDOW, GRACE))
                .emitStrategy(EmitStrategy.onWindowClose())
                .aggregate(
                        KafkaStreamsPeer::sketch,
                        (series, value, sketch) -> {
                            count(series);
                            sketch.accept(value);
                            return sketch;
                        },
                        Materialized.<Integer, DDSketchWithExactSummaryStatistics>as(
                                        Stores.inMemoryWindowStore("windows", retention, WINDOW, false))
                                .withKeySerde(Serdes.Integer())
                                .withValueSerde(serde())
                                .withLoggingDisabled()
                                .withCachingDisabled())
                .toStream()
                .foreach((windowed, sketch) -> answer(windowed.key(), windowed.window().start(), sketch));
        // The windows are emitted while the last message is processed; this branch sees it after that.
        stream.filter((series, value) -> series == END).foreach((series, value) -> end());
    }

    private static final class MapProcessor implements Processor<Integer, Double, Void, Void> {
        private final Map<Long, Map<Integer, DDSketchWithExactSummaryStatistics>> windows = new HashMap<>();
        private long startMs = -1;
        private Map<Integer, DDSketchWithExactSummaryStatistics> window;
        private long closedMs;

        @Override
        public void process(Record<Integer, Double> record) {
            count(record.key());
            long start = record.timestamp() - record.timestamp() % WINDOW.toMillis();
            long closes = record.timestamp() - GRACE.toMillis() - WINDOW.toMillis();
            if (closes >= closedMs + WINDOW.toMillis()) {
                closedMs = closes - closes % WINDOW.toMillis();
                windows.entrySet().removeIf(entry -> {
                    if (entry.getKey() > closedMs) {
                        return false;
                    }
                    entry.getValue().forEach((series, sketch) -> answer(series, entry.getKey(), sketch));
                    return true;
                });
                startMs = -1;
            }
            if (record.key() == END) {
                end();
                return;
            }
            if (start != startMs) {
                startMs = start;
                window = windows.computeIfAbsent(start, key -> new HashMap<>());
            }
            window.computeIfAbsent(record.key(), key -> sketch()).accept(record.value());
        }
    }

    private static long peakKb() throws IOException {
        for (String line : Files.readAllLines(Path.of("/proc/self/status"))) {
            if (line.startsWith("VmHWM")) {
                return Long.parseLong(line.replaceAll("[^0-9]", ""));
            }
        }
        return 0;
    }

    public static void main(String[] arguments) throws Exception {
        StreamsBuilder builder = new StreamsBuilder();
        KStream<Integer, Double> stream =
                builder.stream(arguments[2], Consumed.with(Serdes.Integer(), Serdes.Double()));
        if (arguments[0].equals("dsl")) {
            dsl(stream);
        } else {
            stream.process(MapProcessor::new);
        }
        Properties properties = new Properties();
        properties.put(StreamsConfig.APPLICATION_ID_CONFIG, "peer-" + arguments[0] + "-" + arguments[2]);
        properties.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, arguments[1]);
        properties.put(StreamsConfig.STATE_DIR_CONFIG, arguments[3]);
        properties.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, 1);
        properties.put(StreamsConfig.STATESTORE_CACHE_MAX_BYTES_CONFIG, 0);
        properties.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, 30_000);
        properties.put(StreamsConfig.METRICS_RECORDING_LEVEL_CONFIG, "INFO");
        // Windows are emitted as soon as they close, not once a second, so that the last message brings the last ones.
        properties.put(StreamsConfig.InternalConfig.EMIT_INTERVAL_MS_KSTREAMS_WINDOWED_AGGREGATION, 0);
        properties.put("auto.offset.reset", "earliest");
        properties.put("max.poll.records", 10_000);
        properties.put("max.partition.fetch.bytes", 8 << 20);
        properties.put("check.crcs", false);
        KafkaStreams streams = new KafkaStreams(builder.build(), properties);
        streams.setUncaughtExceptionHandler(error -> {
            error.printStackTrace();
            Runtime.getRuntime().halt(1);
            return null;
        });
        streams.start();
        done.await();
        System.out.printf(
                "{\"samples\": %d, \"seconds\": %f, \"cpu_seconds\": %f, \"peak_mb\": %f}%n",
                samples, (lastNanos - firstNanos) / 1e9, (lastCpuNanos - firstCpuNanos) / 1e9, peakKb() / 1024.0);
        answers.removeIf(line -> line.startsWith(END + ","));
        Files.write(Path.of(arguments[4]), answers);
        System.out.flush();
        Runtime.getRuntime().halt(0);
    }
}
