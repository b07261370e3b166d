package headrace;

import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import org.apache.flink.table.api.DataTypes;
import org.apache.flink.table.functions.UserDefinedFunction;
import org.apache.flink.table.types.inference.CallContext;
import org.apache.flink.table.types.inference.StateTypeStrategy;
import org.apache.flink.table.types.inference.StaticArgument;
import org.apache.flink.types.Row;

/**
 * The records pass at which the last `size` ones lie within `within_ms`, and one record earlier they did not. The records are on time,
 * so what lies `within_ms` behind the watermark is in no burst with what may still come.
 */
public final class Burst extends Passing {
    private static final int TIMES = 0, FULL = 1, TOUCHED = 2;

    private final int time;
    private final int reached;
    private final int size;
    private final long withinMs;

    public Burst() {
        time = reached = size = 0;
        withinMs = 0;
    }

    private Burst(CallContext call) {
        super(call);
        time = column(call, TIME_MS);
        reached = column(call, REACHED);
        size = (int) number(call, 1);
        withinMs = number(call, 2);
    }

    @Override
    public UserDefinedFunction specialize(SpecializedContext context) {
        return new Burst(context.getCallContext());
    }

    @Override
    List<StaticArgument> arguments() {
        return List.of(constant("size"), constant("within_ms"));
    }

    /** times: of the last records. full: whether they were a burst. touched: the partition's time at the last one. */
    @Override
    LinkedHashMap<String, StateTypeStrategy> state() {
        LinkedHashMap<String, StateTypeStrategy> state = new LinkedHashMap<>();
        state.put("last", kept(DataTypes.ROW(
                DataTypes.FIELD("times", DataTypes.ARRAY(DataTypes.BIGINT().notNull()).bridgedTo(long[].class)),
                DataTypes.FIELD("full", DataTypes.BOOLEAN()),
                DataTypes.FIELD("touched", DataTypes.BIGINT()))));
        return state;
    }

    public void eval(Context context, Row last, Row record, Long ofSize, Long within) {
        long[] before = last.getField(TIMES) == null ? new long[0] : last.getFieldAs(TIMES);
        int kept = Math.min(before.length, size - 1);
        long[] times = Arrays.copyOfRange(before, before.length - kept, before.length + 1);
        times[kept] = record.<Long>getFieldAs(time);
        if (before.length == 0) {
            context.timeContext(Long.class).registerOnTime(record.<Long>getFieldAs(reached) + withinMs);
        }
        boolean full = times.length == size && span(times) <= withinMs;
        if (full && !last.<Boolean>getFieldAs(FULL)) {
            pass(record);
        }
        last.setField(TIMES, times);
        last.setField(FULL, full);
        last.setField(TOUCHED, record.<Long>getFieldAs(reached));
    }

    private static long span(long[] times) {
        long least = times[0], most = least;
        for (long time : times) {
            least = Math.min(least, time);
            most = Math.max(most, time);
        }
        return most - least;
    }

    public void onTimer(OnTimerContext context, Row last) {
        long overMs = last.<Long>getFieldAs(TOUCHED) + withinMs;
        if (overMs <= context.timeContext(Long.class).currentWatermark()) {
            context.clearAllState();
        } else {
            context.timeContext(Long.class).registerOnTime(overMs);
        }
    }
}
